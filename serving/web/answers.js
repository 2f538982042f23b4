/** A head's answer goes in, a card that shows it comes out; the form of the answer says of which kind it is. */

import { strip } from "./charts.js";
import { copyButton, h, show } from "./dom.js";
import { unitsOfCharacters } from "./words.js";

const FEW = 10; // bars shown at once
const COLOURS = 6; // of entities, in style.css
const types = []; // of entities seen: a type keeps its colour

const KINDS = [
  { key: "spans", card: entities, brief: ({ spans }) => list(spans.map((one) => `${one.text} ${one.type}`), "entity") },
  { key: "masks", card: guesses, brief: ({ masks }) => list(masks.map(([best]) => best.token), "[MASK]") },
  { key: "labels", card: multilabel, brief: ({ labels }) => list(labels, "label") },
  { key: "label", card: classification, brief: (answer) => `${answer.label} ${show(share(answer), "percent")}` },
  { key: "value", slim: true, card: regression, brief: ({ value }) => show(value, "number") },
  { key: "similarity", slim: true, card: similarity, brief: ({ similarity: value }) => show(value, "number") },
  { key: "vector", slim: true, card: vector, brief: ({ vector: numbers }) => `${numbers.length} numbers` },
];
const OTHER = { card: (answer) => h("pre", {}, JSON.stringify(answer, null, 1)), brief: () => "numbers" };

const share = ({ label, probabilities }) => probabilities[label];
const list = (words, name) => words.join(", ") || `no ${name}`;
const kindOf = (answer) => KINDS.find(({ key }) => key in answer) ?? OTHER;

/** The answer in a few words. */
export const brief = (head, answer) => `${head}: ${kindOf(answer).brief(answer)}`;

/** `about` is what /stats says of the head, where it does; `text` the first text, where entities have their places. */
export function answerCard(head, answer, text, about) {
  const { card, slim } = kindOf(answer);
  return h("article", { class: `card ${slim ? "slim" : ""}`, "data-head": head },
    h("header", {}, h("h3", {}, head), about && h("small", {}, about.kind)),
    card(answer, text));
}

function classification({ label, probabilities }) {
  return [
    h("p", { class: "big" }, label, " ", h("small", {}, show(probabilities[label], "percent"))),
    bars(probabilities, [label]),
  ];
}

function multilabel({ labels, probabilities }) {
  return [
    labels.length
      ? h("p", { class: "chips" }, labels.map((label) => h("span", { class: "chip on" }, label)))
      : h("p", { class: "quiet" }, "No label reaches its threshold."),
    bars(probabilities, labels, h("span", { class: "tick", role: "img", "aria-label": "over its threshold" }, "✓")),
    h("p", { class: "quiet small" }, "✓ reaches the threshold of its label"),
  ];
}

function bars(probabilities, chosen, tick) {
  const sorted = Object.entries(probabilities).sort(([, a], [, b]) => b - a);
  const rows = sorted.map(([label, probability], index) => {
    const on = chosen.includes(label);
    return h("li", { class: on && "on", hidden: index >= FEW && !on },
      h("span", { class: "name" }, label, on && tick?.cloneNode(true)),
      h("span", { class: "bar", "--share": probability, "aria-hidden": "true" }),
      h("span", { class: "share" }, show(probability, "percent")));
  });
  const rest = rows.filter((row) => row.hidden);
  const toggle = () => {
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", open);
    button.textContent = open ? "Show fewer" : `Show all ${rows.length}`;
    for (const row of rest) row.hidden = !open;
  };
  const button = h("button", { type: "button", class: "plain", "aria-expanded": "true", onclick: toggle });
  toggle();
  return [h("ol", { class: "bars" }, rows), rest.length > 0 && button];
}

function entities({ spans }, text) {
  const at = unitsOfCharacters(text);
  const parts = [];
  let done = 0;
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    if (span.start < done) continue; // inside the one before, which is marked already
    if (!types.includes(span.type)) types.push(span.type);
    parts.push(text.slice(at[done], at[span.start]), h("mark", { class: `hue-${types.indexOf(span.type) % COLOURS}` },
      text.slice(at[span.start], at[span.end]), h("b", {}, `${span.type} ${show(span.score, "percent")}`)));
    done = span.end;
  }
  const marked = h("p", { class: "text" }, parts, text.slice(at[done]));
  return spans.length ? marked : [marked, h("p", { class: "quiet" }, "No entity found.")];
}

function guesses({ masks }) {
  if (!masks.length) return h("p", { class: "quiet" }, "Write [MASK] in the text for a guess at the word.");
  return masks.map((mask, index) => [
    h("h4", {}, `[MASK]${masks.length > 1 ? ` ${index + 1}` : ""}`),
    bars(Object.fromEntries(mask.map(({ token, probability }) => [token, probability])), [mask[0].token]),
  ]);
}

function regression({ value }) {
  return h("p", { class: "big" }, show(value, "number"));
}

function similarity({ similarity: value }) {
  return [
    h("p", { class: "big" }, show(value, "number"), " ", h("small", {}, "cosine")),
    h("div", { class: "scale", "--at": (value + 1) / 2, "aria-hidden": "true" }),
    h("p", { class: "ends", "aria-hidden": "true" },
      ["−1 opposite", "0", "1 the same"].map((end) => h("span", {}, end))),
  ];
}

function vector({ vector: numbers }) {
  return [
    h("p", { class: "big" }, numbers.length, " ", h("small", {}, "numbers")),
    strip(numbers.slice(0, 64)),
    h("p", { class: "numbers" }, numbers.slice(0, 6).map((number) => show(number, "signed")).join(" "), " …"),
    copyButton(() => JSON.stringify(numbers), "Copy the vector"),
  ];
}
