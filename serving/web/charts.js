/** Numbers go in, small SVG pictures come out, each with its words for those who do not see it. */

import { h, show, svg } from "./dom.js";

const SECONDS = 120;
const HEIGHT = 60;

/**
 * The last two minutes as lines. `lines`: `{name, values}` with one value (or null) for each of `times` in seconds;
 * `unit` follows the numbers; `top` is the largest value of the scale, else the next round one.
 */
export function chart(title, times, lines, unit, top = roundUp(Math.max(0, ...lines.flatMap(({ values }) => values)))) {
  const x = (index) => SECONDS - (times.at(-1) - times[index]);
  const y = (value) => HEIGHT * (1 - value / top);
  const label = `${title}, last two minutes. ${lines.map((line) => inWords(line, unit)).join(" ")}`;
  return h("figure", { class: "chart" },
    h("span", { class: "top" }, `${show(top, "number")}${unit}`),
    svg("svg", { viewBox: `0 0 ${SECONDS} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
      lines.map(({ values }, index) => runs(values, x, y).map((run) => [
        index === 0 && svg("path", { class: "area", d: `M${run.join("L")}V${HEIGHT}H${run[0][0]}Z` }),
        svg("path", { class: `line line-${index}`, d: `M${run.join("L")}h0` }), // h0: a lone point is a dot
      ]))),
    h("figcaption", {}, h("span", {}, "2 min ago"), h("span", {}, "now")));
}

/** The points `[x, y]` of values that follow each other without a gap. */
function runs(values, x, y) {
  const found = [[]];
  for (const [index, value] of values.entries()) {
    if (value != null && x(index) >= 0) found.at(-1).push([x(index), y(value).toFixed(2)]);
    else if (found.at(-1).length) found.push([]);
  }
  return found.filter((run) => run.length);
}

function inWords({ name, values }, unit) {
  const known = values.filter((value) => value != null);
  if (!known.length) return `${name}: none.`;
  const [least, most] = [Math.min(...known), Math.max(...known)].map((value) => `${show(value, "number")}${unit}`);
  return `${name}: from ${least} to ${most}, last ${show(known.at(-1), "number")}${unit}.`;
}

/** A round number for the top of a scale. */
function roundUp(value) {
  if (value <= 1) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= value);
}

/** Numbers as bars above and below a line. */
export function strip(values) {
  const most = Math.max(...values.map(Math.abs)) || 1;
  const bars = values.map((value, index) => {
    const height = (Math.abs(value) / most) * 16;
    return svg("rect", { x: index * 4, y: value > 0 ? 16 - height : 16, width: 3, height });
  });
  const viewBox = `0 0 ${values.length * 4} 32`;
  return svg("svg", { class: "strip", viewBox, preserveAspectRatio: "none", "aria-hidden": "true" }, bars);
}
