/** A path and a body go in, the server's JSON comes out, or a `Refusal` that says what to do. */

import { apiKey, needKey } from "./key.js";

const ATTEMPTS = 4; // of a request that the full server refuses
const LONGEST_WAIT = 30; // seconds

const ADVICE = {
  0: "Is it running? Look at its log, then try again.",
  401: "Give the API key above.",
  404: "Choose another version, or load the page again.",
  413: "Make it shorter.",
  422: "Change it and ask again.",
  429: "Ask again in a moment.",
  500: "Ask again; if it stays, whoever runs the server finds the reason in its log.",
  503: "The model is being loaded. Ask again in a few seconds.",
  504: "The server had too much to do. Ask again, or make the text shorter.",
};

/** What the server (or, with status 0, the network) said instead of an answer. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
    this.advice = ADVICE[status] ?? "";
  }
}

/**
 * The answer to a GET, or to a POST where there is a body. The full server (429) is asked again when it says, after
 * `waiting(message, seconds)`; without `waiting`, that too is a refusal.
 */
export async function ask(path, { body, signal, waiting } = {}) {
  for (let attempt = 1; ; attempt++) {
    const answer = await send(path, body, signal);
    if (answer.ok) return answer.json();
    const message = await reason(answer);
    if (answer.status === 401) needKey(message);
    if (answer.status !== 429 || !waiting || attempt === ATTEMPTS) throw new Refusal(answer.status, message);
    const seconds = Math.min(Number(answer.headers.get("retry-after")) || 1, LONGEST_WAIT);
    waiting(message, seconds);
    await pause(seconds * 1000, signal);
  }
}

async function send(path, body, signal) {
  const key = apiKey();
  const headers = {
    ...(key && { authorization: `Bearer ${key}` }),
    ...(body && { "content-type": "application/json" }),
  };
  try {
    return await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server does not answer");
  }
}

async function reason(answer) {
  const content = await answer.json().catch(() => null);
  return content?.error?.message ?? `The server answered ${answer.status} ${answer.statusText}`;
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)));
  });
}

/** The request as a command for a shell; the key stays out of it. */
export function curl(path, body) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const key = apiKey() ? ` \\\n  -H "authorization: Bearer $API_KEY"` : "";
  return `curl -s ${new URL(path, document.baseURI)} -H 'content-type: application/json'${key} \\\n  -d '${quoted}'`;
}
