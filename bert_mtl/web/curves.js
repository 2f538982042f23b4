// Series of points go in, charts come out (uPlot draws them): values under the cursor, series to switch, a closer look.

const AXIS = 13; // pixels of its letters
const RAW = 0.28; // opacity of a line beside its smoothed one
const NOISY = 60; // points from which a line is smoothed at first
const SHORT = { count: "short" }; // formats along an axis that differ
const charts = [];

/**
 * A chart. `series`: `{name, hue, dashed, points: [[step, value], …]}`; `mark`: the step of the dashed line; `note`:
 * what stands under the title; `format` of values; `log` and `smooth`: whether the chart can be drawn so.
 */
function chart({ title, note, series, mark, format = "number", log = false, smooth = false }) {
  const state = { hidden: new Set(), log: false, smooth: smooth && series.some(({ points }) => points.length > NOISY) };
  const room = h("div", { class: "canvas", tabindex: "0", role: "img", "aria-label": inWords(title, series, format) });
  const at = h("span", { class: "quiet small" });
  const values = series.map(() => h("output", {}));
  const switches = series.map((one, index) => h("button", {
    type: "button", class: "plain", "aria-pressed": "true",
    onclick: ({ currentTarget: button }) => {
      const off = state.hidden.delete(index) ? false : Boolean(state.hidden.add(index));
      button.setAttribute("aria-pressed", !off);
      draw();
    },
  }, stroke(one), one.name, values[index]));
  const option = (key, name) => h("label", { class: "option" }, h("input", {
    type: "checkbox", checked: state[key], onchange: ({ target }) => { state[key] = target.checked; draw(); },
  }), name);
  const positive = series.every(({ points }) => points.every(([, value]) => value == null || value > 0));
  const figure = h("figure", { class: "chart card" },
    h("figcaption", {}, h("h3", {}, title), note && h("p", { class: "quiet small" }, note)),
    room,
    h("div", { class: "switches" }, switches),
    h("div", { class: "options" }, at, log && positive && option("log", "Log scale"),
      smooth && series.some(({ points }) => points.length > 10) && option("smooth", "Smooth")));
  const all = aligned(series);
  const [steps, ...rows] = all;
  let plot = null;

  const tell = (index) => {
    at.textContent = index == null ? "Last values" : `Step ${show(steps[index], "count")}`;
    rows.forEach((row, place) => (values[place].textContent = show(nearest(row, index ?? steps.length - 1), format)));
  };
  const draw = () => {
    plot?.destroy();
    room.replaceChildren();
    plot = new uPlot(options(series, state, mark, format, room, tell), state.smooth ? withSmoothed(all) : all, room);
    tell(null);
  };
  room.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !plot) return;
    event.preventDefault();
    const next = Math.min(steps.length - 1, Math.max(0, (plot.cursor.idx ?? (by < 0 ? steps.length : -1)) + by));
    plot.setCursor({ left: plot.valToPos(steps[next], "x"), top: 0 });
  });
  let width = 0;
  new ResizeObserver(() => {
    if (!room.clientWidth || room.clientWidth === width) return;
    width = room.clientWidth;
    if (plot) plot.setSize({ width, height: height() });
    else draw();
  }).observe(room);
  charts.push(() => plot?.redraw());
  return figure;
}

const height = () => (innerWidth < 500 ? 190 : 230);
const dashed = ({ hue, dashed: asked }) => asked || hue >= HUES;

const stroke = (one) =>
  h("i", { class: `stroke hue-${one.hue % HUES}${dashed(one) ? " dashed" : ""}`, "aria-hidden": "true" });

/** uPlot's data: all steps, then each series' values at them, null where it has none. */
function aligned(series) {
  const maps = series.map(({ points }) => new Map(points));
  const steps = [...new Set(maps.flatMap((map) => [...map.keys()]))].sort((a, b) => a - b);
  return [steps, ...maps.map((map) => steps.map((step) => map.get(step) ?? null))];
}

/** The same with, after each series, its smoothed one. */
const withSmoothed = ([steps, ...rows]) => [steps, ...rows.flatMap((row) => [row, smoothed(row)])];

/** The running mean whose weights fall by a tenth each point, without the pull of its start. */
function smoothed(row) {
  let [sum, weight] = [0, 0];
  return row.map((value) => {
    if (value == null) return null;
    [sum, weight] = [0.9 * sum + value, 0.9 * weight + 1];
    return sum / weight;
  });
}

function options(series, state, mark, format, room, tell) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const lines = series.flatMap((one, index) => {
    const line = {
      show: !state.hidden.has(index), spanGaps: true, width: 2, dash: dashed(one) ? [6, 4] : undefined,
      stroke: () => colour(`--hue-${one.hue % HUES}`),
      points: { show: one.points.length <= 20, size: 6, fill: () => colour("--card") },
    };
    return state.smooth ? [{ ...line, width: 1, alpha: RAW }, { ...line, points: { show: false } }] : [line];
  });
  const axis = {
    stroke: () => colour("--quiet"), font: `${AXIS - 1}px system-ui, sans-serif`, ticks: { show: false },
    grid: { stroke: () => colour("--line"), width: 1 },
  };
  const steps = [...new Set(series.flatMap(({ points }) => points.map(([step]) => step)))];
  const numbers = (_, marks) => marks.map((value) => (value == null ? "" : show(value, SHORT[format] ?? format)));
  const whole = (_, steps) => steps.map((step) => (Number.isInteger(step) ? show(step, "short") : ""));
  return {
    width: room.clientWidth, height: height(), legend: { show: false },
    cursor: { sync: { key: "step", setSeries: false }, points: { size: 7 }, y: false },
    scales: {
      x: { time: false, ...(steps.length === 1 && { range: [steps[0] - 1, steps[0] + 1] }) },
      y: { distr: state.log ? 3 : 1 },
    },
    series: [{}, ...lines],
    axes: [{ ...axis, size: 32, values: whole }, { ...axis, size: 56, values: numbers }],
    hooks: {
      setCursor: [(plot) => tell(plot.cursor.left < 0 ? null : plot.cursor.idx)],
      draw: [(plot) => mark != null && vertical(plot, plot.valToPos(mark, "x", true), colour("--quiet"))],
    },
  };
}

function vertical({ ctx, bbox }, x, colour) {
  if (x < bbox.left || x > bbox.left + bbox.width) return;
  ctx.save();
  ctx.strokeStyle = colour;
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
  ctx.beginPath();
  ctx.moveTo(x, bbox.top);
  ctx.lineTo(x, bbox.top + bbox.height);
  ctx.stroke();
  ctx.restore();
}

/** The value at a place, or the one before it. */
function nearest(row, index) {
  for (let at = index; at >= 0; at--) if (row[at] != null) return row[at];
  return null;
}

function inWords(title, series, format) {
  const lines = series.map(({ name, points }) =>
    `${name}: from ${show(points[0][1], format)} to ${show(points.at(-1)[1], format)}.`);
  return `${title}. ${lines.join(" ")}`;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((redraw) => redraw()));
