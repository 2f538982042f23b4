// The first of the files that make the page's one module, in this order: dom, curves, browser, page.
// Tags, attributes and children go in, elements come out. Text stays text: nothing here is read as HTML.

const payload = JSON.parse(document.getElementById("payload").textContent);

/** An HTML element. A function listens (`onclick`), `--x` is a custom property, false and null leave out. */
function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

const HUES = 8; // colours of series in page.css
const dot = (index) => h("i", { class: `dot hue-${index % HUES}`, "aria-hidden": "true" });

const FORMATS = {
  count: new Intl.NumberFormat("en", { maximumFractionDigits: 0 }),
  percent: new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 }),
  number: new Intl.NumberFormat("en", { maximumSignificantDigits: 4 }),
  short: new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }),
};

/** A number as people read it, in one of the formats; a dash for null. */
function show(value, format = "number") {
  if (value == null) return "–";
  const tiny = format === "number" && value !== 0 && Math.abs(value) < 0.001;
  return (tiny ? value.toExponential(1) : FORMATS[format].format(value)).replaceAll("-", "−");
}

const plural = (count, word) => `${show(count, "count")} ${word}${count === 1 ? "" : "s"}`;
