/** Tags, attributes and children go in, elements come out. Text stays text: nothing here is read as HTML. */

export const byId = (id) => document.getElementById(id);

/** An HTML element. A function listens (`onclick`), `--x` is a custom property, false and null leave out. */
export const h = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);

/** The same for SVG. */
export const svg = (tag, attributes = {}, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value); // unlike style="…", which the CSP forbids
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

/** A button that copies what `text()` gives. */
export function copyButton(text, name = "Copy") {
  const button = h("button", { type: "button", onclick: async () => {
    button.textContent = (await copied(text())) ? "Copied" : "Not allowed";
    setTimeout(() => (button.textContent = name), 1500);
  } }, name);
  return button;
}

async function copied(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const field = h("textarea", {}, text); // the clipboard is there on https and localhost only
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done;
}

const FORMATS = {
  percent: new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 }),
  number: new Intl.NumberFormat("en", { maximumSignificantDigits: 4 }),
  count: new Intl.NumberFormat("en", { maximumFractionDigits: 1 }),
  signed: new Intl.NumberFormat("en", { minimumFractionDigits: 3, maximumFractionDigits: 3, signDisplay: "always" }),
};

/** A number as people read it, in one of the formats; a dash for null. */
export const show = (value, format) => (value == null ? "–" : FORMATS[format].format(value));
