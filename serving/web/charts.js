/** Numbers go in, small SVG pictures come out, each with its words for those who do not see it. */

import { h, show, svg } from "./dom.js";

const SECONDS = 120;
const HEIGHT = 60;

/**
 * The last two minutes as lines. `lines`: `{name, values}` with one value (or null) for each of `times` in seconds;
 * `unit` follows the numbers; `top` is the largest value of the scale, else the next round one.
 */
export function chart(title, times, lines, unit = "", top = roundUp(Math.max(0, ...lines.flatMap((line) => line.values)))) {
  const x = (index) => SECONDS - (times.at(-1) - times[index]);
  const y = (value) => HEIGHT * (1 - value / top);
  const label = `${title}, last two minutes. ${lines.map((line) => inWords(line, unit)).join(" ")}`;
  return h("figure", { class: "chart" },
    h("span", { class: "top" }, `${show(top, "number")}${unit}`),
    svg("svg", { viewBox: `0 0 ${SECONDS} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
      lines.map((line, index) => svg("path", { class: `line line-${index}`, d: path(line.values, x, y) }))),
    h("figcaption", {}, h("span", {}, "2 min ago"), h("span", {}, "now")));
}

function path(values, x, y) {
  const drawn = (index) => values[index] != null;
  const point = (index) => `${x(index).toFixed(1)} ${y(values[index]).toFixed(2)}`;
  return values.map((_, index) => {
    if (!drawn(index) || x(index) < 0) return "";
    return drawn(index - 1) && x(index - 1) >= 0 ? `L${point(index)}` : `M${point(index)}h0`; // h0: a lone dot
  }).join("");
}

function inWords({ name, values }, unit) {
  const known = values.filter((value) => value != null);
  if (!known.length) return `${name}: none.`;
  const [least, most] = [Math.min(...known), Math.max(...known)].map((value) => `${show(value, "number")}${unit}`);
  return `${name}: from ${least} to ${most}, last ${show(known.at(-1), "number")}${unit}.`;
}

/** 1, 2 or 5 times a power of ten. */
function roundUp(value) {
  if (value <= 1) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

/** Numbers as bars above and below a line. */
export function strip(values) {
  const most = Math.max(...values.map(Math.abs)) || 1;
  const bars = values.map((value, index) => {
    const height = (Math.abs(value) / most) * 16;
    return svg("rect", { x: index * 4, y: value > 0 ? 16 - height : 16, width: 3, height });
  });
  return svg("svg", { class: "strip", viewBox: `0 0 ${values.length * 4} 32`, "aria-hidden": "true" }, bars);
}
