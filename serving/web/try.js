/** The form goes in as one request; every head's answer, or the server's refusal, comes out beside it. */

import { answerCard, brief } from "./answers.js";
import { ask, curl } from "./api.js";
import { byId, copyButton, h, show } from "./dom.js";
import { explanation } from "./explain.js";
import { onStats } from "./stats.js";

const PAIRS = ["pair", "apart"];

/** Texts to begin with, each for heads that read or answer so. */
const EXAMPLES = [
  { name: "A review", text: "The plot drags, but the cast is wonderful and the last half hour is worth the wait." },
  { name: "A complaint", text: "Two hours of noise. I left before the end and I want my money back." },
  { name: "Thanks", kind: "multilabel", text: "You did all this for me? Thank you so much! I was worried." },
  { name: "Names", kind: "tagging", text: "🎬 Sofia Coppola filmed in Tokyo for Focus Features." },
  { name: "A pair", reads: PAIRS, text: "A man plays the guitar on a stage.", second: "Somebody makes music." },
  { name: "A gap", reads: ["masks"], text: "The capital of France is [MASK]." },
];

let heads = {}; // what /stats says of each
let versions = []; // that can be asked
let current; // the request under way
let refused; // the status of the last one, where it was refused

export function startTrying() {
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("ask").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
  });
  byId("version").addEventListener("change", known);
  document.addEventListener("key", () => refused === 401 && send());
  onStats((stats) => {
    const found = stats?.versions.filter((version) => version.state === "AVAILABLE") ?? [];
    if (!stats || JSON.stringify(found.map(identity)) === JSON.stringify(versions.map(identity))) return;
    versions = found;
    const chosen = byId("version").value;
    byId("version").replaceChildren(h("option", { value: "" }, "the newest"),
      ...found.map(({ version }) => h("option", { selected: version === chosen }, version)));
    byId("version-part").hidden = found.length < 2;
    known();
  });
  known();
}

const identity = ({ version, heads: its }) => [version, its];

/** Fits the form to what the heads of the chosen version read. */
function known() {
  const chosen = byId("version").value;
  const asked = versions.filter(({ version }) => !chosen || version === chosen);
  heads = Object.assign({}, ...asked.map((version) => version.heads));
  const all = Object.entries(heads);
  const pairs = all.filter(([, head]) => PAIRS.includes(head.reads)).map(([name]) => name);
  byId("second-part").hidden = !pairs.length;
  byId("second").required = all.length > 0 && all.every(([, head]) => head.reads === "pair");
  byId("second-why").textContent = `${byId("second").required ? "" : "if you like; "}for ${pairs.join(", ")}`;
  const fits = ({ kind, reads, second }) => (second || !byId("second").required) &&
    ((!kind && !reads) || all.some(([, head]) => head.kind === kind || reads?.includes(head.reads)));
  byId("examples").replaceChildren(...EXAMPLES.filter(fits).map((example) =>
    h("button", { type: "button", class: "chip", onclick: () => {
      byId("text").value = example.text;
      byId("second").value = example.second ?? "";
      byId("ask").requestSubmit();
    } }, example.name)));
}

function body() {
  const second = !byId("second-part").hidden && byId("second").value;
  const version = byId("version").value;
  return { texts: [byId("text").value], ...(second && { texts_b: [second] }), ...(version && { version }) };
}

async function send() {
  current?.abort();
  const mine = (current = new AbortController());
  const request = body();
  const waiting = (message, seconds) => said(`${message}. Asking again in ${seconds} s.`);
  const options = { signal: mine.signal, waiting };
  byId("welcome").hidden = true;
  byId("output").setAttribute("aria-busy", "true");
  byId("problem").replaceChildren();
  said("Asking");
  const started = performance.now();
  try {
    const answer = await ask("classify", { ...options, body: request });
    refused = null;
    present(request, answer, performance.now() - started, options);
  } catch (error) {
    if (mine !== current) return; // the next request tells how it goes
    byId("answers").replaceChildren();
    fail(error);
  }
  if (mine === current) byId("output").removeAttribute("aria-busy");
}

/** What everybody reads, and what is only heard: the cards show it. */
const said = (seen, heard = "") => byId("said").replaceChildren(seen, heard && h("span", { class: "heard" }, heard));

function present(request, { results: [result], truncated: [truncated], model }, milliseconds, options) {
  const answers = Object.entries(result);
  said(`${model.name}, version ${model.version}, answered in ${show(milliseconds, "count")} ms`,
    `: ${answers.map(([head, answer]) => brief(head, answer)).join("; ")}`);
  const command = curl("classify", request);
  if (byId("said").getBoundingClientRect().top > innerHeight * 0.8) byId("said").scrollIntoView(); // on narrow screens
  byId("answers").replaceChildren(...[
    truncated && h("p", { class: "notice" }, "The text is longer than the model reads: it answered from a part of it."),
    ...answers.map(([head, answer]) => answerCard(head, answer, request.texts[0], heads[head])),
    explanation(request, result, options, fail),
    h("details", { class: "card" }, h("summary", {}, "The same as a command"), h("pre", {}, command),
      copyButton(() => command, "Copy the command")),
  ].filter(Boolean));
}

function fail(error) {
  if (error.name === "AbortError") return;
  refused = error.status;
  said("");
  byId("problem").replaceChildren(h("p", { class: "notice error" }, `${error.message}. ${error.advice ?? ""}`));
  if (refused === 401) byId("key-field").focus();
}
