/** GET /stats goes out again and again while the page is seen; every answer goes to those who listen. */

import { ask } from "./api.js";

const PATIENCE = 3000; // milliseconds until an answer counts as none
const listeners = [];
let period = 10000;
let timer;
let asking = false;

/** `listener(stats, error)`: one of the two is null. */
export const onStats = (listener) => listeners.push(listener);

/** Asks now, and from now on every `milliseconds`. */
export function every(milliseconds) {
  period = milliseconds;
  poll();
}

async function poll() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  const started = performance.now();
  const outcome = await ask("stats", { signal: AbortSignal.timeout(PATIENCE) }).then(
    (stats) => [stats, null],
    (error) => [null, error],
  );
  asking = false;
  timer = setTimeout(poll, Math.max(0, period - (performance.now() - started)));
  for (const listener of listeners) listener(...outcome);
}

document.addEventListener("visibilitychange", poll);
document.addEventListener("key", poll);
