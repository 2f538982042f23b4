// Errors, or examples on which runs disagree, go in; a list to search, filter and sort comes out. Only the page of it
// that is seen is in the document.

const PAGE = 50;
const CLIPPED = 280; // characters of a text shown at first
const NONE = "(none)";

/**
 * A list of `items`, each `{texts, card}`. `filters`: `{name, options: [[value, name], …], keep(item, value)}`;
 * `orders`: `[name, compare]`, the first one as they are. Returned with `choose(values)`, which sets filters by place.
 */
function browser(node, { items, filters, orders, word }) {
  const state = { page: 0 };
  const id = `browser-${document.querySelectorAll(".browser form").length}`;
  const search = h("input", {
    type: "search", id: `${id}-search`, placeholder: "All words", autocomplete: "off", spellcheck: "false",
  });
  const field = (name, options, key) => {
    const select = h("select", { id: `${id}-${key}` }, options.map(([value, label]) => h("option", { value }, label)));
    return [select, h("div", {}, h("label", { for: `${id}-${key}` }, name), select)];
  };
  const chosen = filters.map(({ name, options }, index) => field(name, options, index));
  const [order, orderField] = field("Sort", orders.map(([name], index) => [index, name]), "order");
  const said = h("p", { role: "status", class: "small" });
  const list = h("ol", { class: "texts", tabindex: "0", "aria-label": `${word}s` });
  const pager = h("div", { class: "pager" });
  const form = h("form", { role: "search", onsubmit: (event) => event.preventDefault() },
    h("div", { class: "search" }, h("label", { for: `${id}-search` }, "Search"), search),
    chosen.map(([, box]) => box), orders.length > 1 && orderField);

  const where = (pages) => h("span", { class: "small" }, `Page ${state.page + 1} of ${pages}`);
  const turn = (by, name, pages) => {
    const disabled = state.page + by < 0 || state.page + by >= pages;
    return h("button", { type: "button", disabled, onclick: () => { state.page += by; draw(); list.focus(); } }, name);
  };
  const draw = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = items.filter((item) =>
      filters.every(({ keep }, index) => !chosen[index][0].value || keep(item, chosen[index][0].value)) &&
      words.every((each) => haystack(item).includes(each)));
    const compare = orders[order.value || 0][1];
    if (compare) found.sort(compare);
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const first = state.page * PAGE;
    list.replaceChildren(...found.slice(first, first + PAGE).map((item) => h("li", {}, item.card(words))));
    list.hidden = !found.length;
    list.scrollTop = 0;
    const of = found.length < items.length ? ` of ${show(items.length, "count")}` : "";
    said.textContent = plural(found.length, word) + of;
    pager.replaceChildren(...(pages > 1 ? [turn(-1, "Previous", pages), where(pages), turn(1, "Next", pages)] : []));
  };
  const again = () => { state.page = 0; draw(); };
  form.addEventListener("input", again);
  node.replaceChildren(form, said, list, pager);
  draw();
  return {
    choose(values) {
      search.value = "";
      values.forEach((value, index) => (chosen[index][0].value = value));
      again();
      list.focus({ preventScroll: true });
    },
  };
}

/** What is searched of an item, made when it is first asked for. */
const haystack = (item) => (item.hay ??= item.texts.join("\n").toLowerCase());

/** `[value, name]` of every value, with how often it comes, behind one that lets all pass. */
function choices(items, values) {
  const counts = new Map();
  for (const item of items) for (const value of new Set(values(item))) counts.set(value, (counts.get(value) ?? 0) + 1);
  const sorted = [...counts].sort(([a], [b]) => String(a).localeCompare(String(b)));
  return [["", "All"], ...sorted.map(([value, count]) => [value, `${value} (${count})`])];
}

/** A text of which the start is shown until more is asked for; the words searched for are marked. */
function clipped(text, words) {
  const whole = text.length <= CLIPPED + 40;
  const body = h("span", {}, marked(whole ? text : `${start(text)}…`, words));
  const more = !whole && h("button", { type: "button", class: "plain small", "aria-expanded": "false", onclick: () => {
    const open = more.getAttribute("aria-expanded") !== "true";
    more.setAttribute("aria-expanded", open);
    more.textContent = open ? "Show less" : "Show all";
    body.replaceChildren(...marked(open ? text : `${start(text)}…`, words));
  } }, "Show all");
  return h("p", { class: "text" }, body, more && [" ", more]);
}

const start = (text) => text.slice(0, CLIPPED).replace(/\s+\S*$/, "");

function marked(text, words) {
  if (!words.length) return [text];
  const any = new RegExp(`(${words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "gi");
  return text.split(any).map((piece, index) => (index % 2 ? h("mark", { class: "hit" }, piece) : piece));
}

/** Where each character (code point, as places are counted) begins, and the end. */
function unitsOfCharacters(text) {
  const at = [0];
  for (const character of text) at.push(at.at(-1) + character.length);
  return at;
}

/** A text with its spans marked; a type has the colour of its place in `types`. */
function spanned(text, spans, types) {
  const at = unitsOfCharacters(text);
  const parts = [];
  let done = 0;
  for (const { type, start: from, end } of [...spans].sort((a, b) => a.start - b.start)) {
    if (from < done) continue; // inside the one before, which is marked already
    parts.push(text.slice(at[done], at[from]), h("mark", { class: `hue-${types.indexOf(type) % HUES}` },
      text.slice(at[from], at[end]), h("b", {}, type)));
    done = end;
  }
  return h("p", { class: "text spans" }, parts, text.slice(at[done]));
}

const chip = (name, ...inside) => h("span", { class: "answer" }, h("small", {}, name), inside);
const texts = (item, words) => [clipped(item.text, words), item.text_b != null && clipped(item.text_b, words)];
function named(value) {
  if (Array.isArray(value)) return value.join(", ") || NONE;
  return typeof value === "number" ? show(value) : String(value);
}
const orNone = (values) => (values.length ? values : [NONE]);

/** What was right and what was answered of an error, as lists of names to filter by; none of numbers. */
function namesOf(error) {
  if (error.spans) return [error.spans, error.predicted].map((spans) => orNone(spans.map(({ type }) => type)));
  if (error.labels) return [orNone(error.labels), orNone(error.predicted)];
  return typeof error.label === "string" ? [[error.label], [error.predicted]] : [[], []];
}

const SHOWN_APART = new Set(["text", "text_b", "spans", "label", "labels", "predicted"]);

const bothSpans = ({ text, spans, predicted }, types) =>
  [chip("label"), spanned(text, spans, types), chip("answered"), spanned(text, predicted, types)];

function answersOf(error) {
  const others = Object.entries(error).filter(([key]) => !SHOWN_APART.has(key));
  return h("p", { class: "answers" },
    ["label", "labels"].filter((key) => key in error).map((key) => chip("label", named(error[key]))),
    "predicted" in error && chip("answered", named(error.predicted)),
    others.map(([key, value]) => chip(key.replaceAll("_", " "), named(value))));
}

/** The browser of a head's errors to one part. */
function errorBrowser(node, errors) {
  const spans = errors.flatMap((error) => (error.spans ? [...error.spans, ...error.predicted] : []));
  const types = [...new Set(spans.map(({ type }) => type))].sort();
  const items = errors.map((error) => {
    const [right, answered] = namesOf(error);
    const card = (words) =>
      h("article", {}, error.spans ? bothSpans(error, types) : [answersOf(error), texts(error, words)]);
    return { texts: [error.text, error.text_b ?? ""], right, answered, error, card };
  });
  const by = (key, sign) => (a, b) => sign * (a.error[key] - b.error[key]);
  const sure = errors.some(({ probability }) => probability != null);
  const far = (item) => Math.abs(item.error.label - item.error.predicted);
  const numbers = errors.some((error) => [error.label, error.predicted].every((each) => typeof each === "number"));
  const size = ({ error }) => error.text.length;
  const filtered = items.some(({ right }) => right.length);
  return browser(node, {
    items, word: "error",
    filters: filtered ? [["True label", "right"], ["Answer", "answered"]].map(([name, key]) => (
      { name, options: choices(items, (item) => item[key]), keep: (item, value) => item[key].includes(value) })) : [],
    orders: [
      ["Worst first", null],
      ...(sure ? [["Most confident first", by("probability", -1)]] : []),
      ...(sure ? [["Least confident first", by("probability", 1)]] : []),
      ...(numbers ? [["Smallest difference first", (a, b) => far(a) - far(b)]] : []),
      ["Shortest first", (a, b) => size(a) - size(b)], ["Longest first", (a, b) => size(b) - size(a)],
    ],
  });
}

/** The browser of examples on which the groups of runs disagree. */
function disagreementBrowser(node, { disagreements, baseline }, groups) {
  const answer = (each, { name }, index) => h("span", { class: "answer" },
    dot(index), h("small", {}, name), named(each.answers[index] ?? "–"), tick(each.right[index]));
  const items = disagreements.map((each) => ({
    texts: [each.text, each.text_b ?? ""], right: each.right,
    card: (words) => h("article", {},
      h("p", { class: "answers" }, chip("label", named(each.label)), groups.map((one, at) => answer(each, one, at))),
      texts(each, words)),
  }));
  const first = groups[baseline].name;
  const pairs = groups.flatMap(({ name }, index) => (index === baseline ? [] : [
    [`base ${index}`, `Only ${first} right, ${name} wrong`],
    [`this ${index}`, `Only ${name} right, ${first} wrong`],
  ]));
  const differs = ({ right }, value) => {
    const [who, at] = value.split(" ");
    return right[baseline] === (who === "base") && right[at] === (who === "this");
  };
  const counted = ([value, name]) => [value, `${name} (${items.filter((item) => differs(item, value)).length})`];
  return browser(node, {
    items, word: "example", orders: [["As they are", null]],
    filters: [{ name: "Who is right", options: [["", "All"], ...pairs.map(counted)], keep: differs }],
  });
}

const MARKS = { true: ["✓", "good", "right"], false: ["✗", "bad", "wrong"] };
function tick(right) {
  if (right == null) return null;
  const [sign, name, words] = MARKS[right];
  return h("b", { class: name, role: "img", "aria-label": words }, sign);
}
