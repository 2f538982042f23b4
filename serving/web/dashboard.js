/** The server's numbers go in, every second; tiles with charts, and the versions with their workers, come out. */

import { chart } from "./charts.js";
import { byId, h, show } from "./dom.js";
import { onStats } from "./stats.js";

const LATENCY = ["p50", "p95", "p99"];
const share = (value) => (value == null ? null : value * 100);

/** Each tile: its number now, its lines `{name, of}` over the history, and a note; without one, each line's number. */
const TILES = [
  { title: "Requests", unit: " /s", big: (now) => show(now.requests_per_second, "count"),
    note: () => "answered each second", lines: [{ name: "requests", of: (second) => second.requests }] },
  { title: "Texts", unit: " /s", big: (now) => show(now.texts_per_second, "count"),
    note: () => "read each second", lines: [{ name: "texts", of: (second) => second.texts }] },
  { title: "Latency", unit: " ms", big: (now) => show(now.latency_ms.p50, "count"),
    lines: LATENCY.map((name) => ({ name, of: (second) => second[name], now: (now) => now.latency_ms[name] })) },
  { title: "Queue", unit: " texts", big: (now) => show(now.queue.texts, "count"),
    note: ({ queue }) => `${show(queue.tokens, "count")} tokens · room for ${show(queue.limit, "count")} texts`,
    lines: [{ name: "texts waiting", of: (second) => second.queue }] },
  { title: "Batch fill", unit: " %", big: (now) => show(share(now.batch.fill), "count"),
    note: ({ batch }) => `of a batch is text, not padding · ${show(batch.rows, "count")} rows`,
    top: 100, lines: [{ name: "fill", of: (second) => share(second.fill) }] },
  { title: "Turned away", unit: " /s", big: (now) => show(now.refused_per_second + now.failed_per_second, "count"),
    lines: [{ name: "refused", of: (second) => second.refused, now: (now) => now.refused_per_second },
      { name: "failed", of: (second) => second.failed, now: (now) => now.failed_per_second }] },
];

let last; // when numbers came
let drawn; // the versions on the page, as JSON

export function startDashboard() {
  onStats((stats, error) => {
    freshness(error);
    if (!stats || byId("panel-live").hidden) return;
    byId("uptime").textContent = `Up for ${duration(stats.uptime)}`;
    byId("tiles").replaceChildren(...TILES.map((each) => tile(each, stats)));
    const versions = JSON.stringify(stats.versions);
    if (versions !== drawn) byId("versions").replaceChildren(...stats.versions.map(card)); // else a selection would go
    drawn = versions;
  });
}

function freshness(error) {
  if (!error) last = new Date();
  byId("numbers").classList.toggle("stale", Boolean(error));
  byId("fresh").classList.toggle("error", Boolean(error));
  const age = last ? `The numbers are of ${last.toLocaleTimeString()}` : "There are no numbers yet";
  const text = error ? `${error.message}. ${age}; asking again every second.` : "";
  if (byId("fresh").textContent !== text) byId("fresh").textContent = text; // said once, not every second
}

function tile({ title, unit, big, note, top, lines }, { now, history }) {
  const times = history.map((second) => second.time);
  const drawnLines = lines.map(({ name, of }) => ({ name, values: history.map(of) }));
  return h("article", { class: "card tile" },
    h("h3", {}, title),
    h("p", { class: "big" }, big(now), h("small", {}, unit)),
    h("p", { class: "quiet small" }, note?.(now) ?? lines.map((line, index) =>
      h("span", { class: `key-${index}` }, `${line.name} ${show(line.now(now), "count")} `))),
    chart(title, times, drawnLines, unit, top));
}

const STATES = { AVAILABLE: "good", ready: "good", LOADING: "busy", starting: "busy", UNLOADING: "busy", END: "busy" };
const badge = (state, error) =>
  h("span", { class: "badge", "data-state": (!error && STATES[state]) || "bad" }, state);

function card({ version, state, error, engine, precision, requests, workers, heads }) {
  return h("article", { class: "card" },
    h("header", {}, h("h3", {}, `Version ${version}`), badge(state, error)),
    error && h("p", { class: "notice error" }, error),
    h("p", { class: "quiet" }, `${engine} · ${precision} · ${show(requests, "count")} requests`),
    h("p", { class: "chips" },
      Object.entries(heads).map(([name, { kind }]) => h("span", { class: "chip" }, `${name}: ${kind}`))),
    workers.length > 0 && h("table", {},
      h("thead", {}, h("tr", {}, ["Worker", "State", "Restarts"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, workers.map(({ pid, state: its, restarts }) =>
        h("tr", {}, h("td", {}, `process ${pid}`), h("td", {}, badge(its)), h("td", {}, restarts))))));
}

function duration(seconds) {
  const [days, hours, minutes] = [seconds / 86400, (seconds / 3600) % 24, (seconds / 60) % 60].map(Math.floor);
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
}
