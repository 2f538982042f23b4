/** Which words mattered: the text goes to the model again with each word left out, and the changes are shown. */

import { ask } from "./api.js";
import { h, show } from "./dom.js";
import { groups } from "./words.js";

const MOST = 60; // texts with something left out
const LISTED = 8; // words in the list
const FAINT = 0.08; // of the largest change: words below it are not coloured

/**
 * A card with a button that explains the result of the request `body`, or null where the text has but one word.
 * `options` go to `ask`; `failed(error)` hears what went wrong.
 */
export function explanation(body, result, options, failed) {
  const texts = [body.texts[0], ...(body.texts_b ?? [])];
  const parts = groups(texts, MOST);
  const targets = targetsOf(result);
  if (!parts.length || !targets.length) return null;
  const status = h("p", { class: "quiet small", role: "status" });
  const place = h("div", {});
  const button = h("button", { type: "button", onclick: async () => {
    button.disabled = true;
    status.textContent = `Asking about ${parts.length} shortened texts`;
    try {
      const { results } = await ask("classify", { ...options, body: { ...body, ...shortened(texts, parts) } });
      place.replaceChildren(...explained(texts, parts, results, targets, status));
      button.hidden = true;
    } catch (error) {
      status.textContent = "";
      failed(error);
    }
    button.disabled = false;
  } }, "Which words mattered?");
  return h("article", { class: "card", id: "words" },
    h("header", {}, h("h3", {}, "Words"), h("small", {}, "each left out in turn")), button, place, status);
}

/** The whole text first, then what is left of it without each part. */
function shortened(texts, parts) {
  const without = (side) => parts.map((part) =>
    part.side === side ? texts[side].slice(0, part.start) + texts[side].slice(part.end) : texts[side]);
  return {
    texts: [texts[0], ...without(0)],
    ...(texts.length > 1 && { texts_b: [texts[1], ...without(1)] }),
  };
}

/** What can be explained of a result: numbers by head, the likeliest label first. */
function targetsOf(result) {
  return Object.entries(result).flatMap(([head, answer]) => {
    if (answer.probabilities) {
      const labels = Object.entries(answer.probabilities).sort(([, a], [, b]) => b - a).slice(0, 10);
      return labels.map(([label]) => ({ name: `${head}: ${label}`, of: (one) => one[head].probabilities[label] }));
    }
    const key = ["value", "similarity"].find((each) => each in answer);
    return key ? [{ name: `${head}: ${key}`, of: (one) => one[head][key] }] : [];
  });
}

function explained(texts, parts, results, targets, status) {
  const view = h("div");
  const draw = (target) => {
    const [whole, ...rest] = results.map(target.of);
    const changes = rest.map((value) => whole - value);
    const most = Math.max(...changes.map(Math.abs), 0.0005);
    status.textContent = `${target.name} is ${show(whole, "number")}. ` +
      "The numbers say by how much it falls (+) or rises (−) without a word.";
    view.replaceChildren(
      ...texts.map((text, side) => h("p", { class: "text" }, painted(text, side, parts, changes, most))),
      h("p", { class: "legend small" }, h("span", { class: "for", "--weight": 0.7 }, "speaks for it"), " ",
        h("span", { class: "against", "--weight": 0.7 }, "speaks against it")),
      listed(texts, parts, changes),
    );
  };
  const select = h("select", { id: "target", onchange: () => draw(targets[select.selectedIndex]) },
    targets.map((target) => h("option", {}, target.name)));
  draw(targets[0]);
  return [h("label", { for: "target" }, "Explain"), select, view];
}

/** The text, each part in the colour of its change; text that was never left out stays plain. */
function painted(text, side, parts, changes, most) {
  const spans = [...parts.entries()].filter(([, part]) => part.side === side).map(([index, { start, end }]) => {
    const share = changes[index] / most;
    const kind = Math.abs(share) < FAINT ? "" : share > 0 ? "for" : "against";
    const word = text.slice(start, end).trimEnd();
    const attributes = { class: kind, "--weight": Math.abs(share), title: show(changes[index], "signed") };
    return [h("span", attributes, word), text.slice(start + word.length, end)];
  });
  return spans.length ? spans : text;
}

function listed(texts, parts, changes) {
  const order = [...changes.keys()].sort((a, b) => Math.abs(changes[b]) - Math.abs(changes[a])).slice(0, LISTED);
  return h("ol", { class: "top-words", "aria-label": "Words that mattered most" }, order.map((index) => {
    const { side, start, end } = parts[index];
    const word = texts[side].slice(start, end).replace(/[\s\p{P}]+$/u, "");
    return h("li", {}, h("span", {}, word), h("span", { class: "share" }, show(changes[index], "signed")));
  }));
}
