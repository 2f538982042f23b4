// The payload goes into the places that the template keeps free for charts and lists; then the buttons get their work.

const heads = Object.entries(payload.heads);
const hueOf = new Map(heads.map(([name], index) => [name, index]));

/** `[step, value]` of the lines of the history that have the key: of each epoch, or of single steps where there are. */
function points(key, ofEpochs) {
  const known = payload.history.filter((line) => line[key] != null);
  const single = known.filter((line) => !("seconds" in line));
  const lines = ofEpochs ? known.filter((line) => "seconds" in line) : single.length ? single : known;
  return lines.map((line) => [line.step, line[key]]);
}

const seriesOf = (list) => list
  .map(({ key, ofEpochs, ...rest }) => ({ ...rest, points: points(key, ofEpochs) }))
  .filter((one) => one.points.length);
const keysOf = () => [...new Set(payload.history.flatMap(Object.keys))];
const varies = (series) => series.some((one) => new Set(one.points.map(([, value]) => value)).size > 1);

const NOT_DRAWN = ["step", "epoch", "seconds", "compile_seconds"];

/** The charts of a run's history: those everyone reads first, then whatever else was logged. */
function historyCharts() {
  const keys = keysOf();
  const ofHeads = (key, extra = {}) =>
    heads.map(([name, head]) => ({ name, hue: hueOf.get(name), key: key(head), ...extra }));
  const alone = (name, key) => [{ name, hue: 0, key }];
  const prefixed = (prefix) => keys.filter((key) => key.startsWith(prefix));
  const headOf = (path) => heads.findIndex(([, head]) => head.path === path || head.task === path);
  const byPath = (prefix) => prefixed(prefix).map((key, index) => {
    const place = headOf(key.slice(prefix.length));
    return { name: key.slice(prefix.length), hue: place < 0 ? index : place, key, ofEpochs: true };
  });
  const exits = heads.flatMap(([name, head]) => keys
    .map((key) => [key, key.startsWith(`${head.path}/exit`) && /exit(\d+)\/dev_(.*)$/.exec(key)])
    .filter(([, found]) => found && found[2] === head.metric)
    .map(([key, found]) => ({ name: `${name}@${found[1]}`, hue: hueOf.get(name), dashed: true, key, ofEpochs: true })));
  const rates = prefixed("optimizer/learning_rate")
    .map((key, index) => ({ name: key.slice("optimizer/".length).replaceAll("_", " "), hue: index, key }));
  const mark = payload.history.find((line) => "seconds" in line && line.epoch === payload.run.best_epoch)?.step;
  const dev = { ofEpochs: true };
  const first = [
    {
      title: "Loss", note: "on train, by head", log: true, smooth: true,
      series: ofHeads(({ path }) => `${path}/loss`),
    },
    {
      title: "Score on dev", note: "each head's selecting metric",
      series: [...ofHeads(({ path, metric }) => `${path}/dev_${metric}`, dev), ...exits],
    },
    { title: "Loss on dev", note: "by head", log: true, series: ofHeads(({ path }) => `${path}/dev_loss`, dev) },
    { title: "Learning rate", log: true, series: rates },
    {
      title: "Speed", note: "tokens a second", format: "count", smooth: true,
      series: alone("tokens a second", "speed/tokens_per_second"),
    },
    {
      title: "Use of the device", note: "share of its peak (MFU)", format: "percent", smooth: true,
      series: alone("MFU", "speed/mfu"),
    },
    {
      title: "Mixture", note: "share of the examples of an epoch", format: "percent",
      series: byPath("mixing/"), only: varies,
    },
    { title: "Weights of losses", series: byPath("weight/"), only: varies },
  ];
  const told = new Set([...NOT_DRAWN, ...first.flatMap(({ series }) => series.map(({ key }) => key))]);
  const rest = keys.filter((key) => !told.has(key) && !key.endsWith("epoch_loss") && payload.history.some((line) => typeof line[key] === "number"))
    .map((key) => ({ title: key, log: true, series: alone(key, key) }));
  const made = (list) => list.map((about) => ({ ...about, mark, series: seriesOf(about.series) }))
    .filter(({ series, only }) => series.length && (!only || only(series)));
  return [made(first), made(rest)];
}

/** The charts of a comparison: a chart a curve, a line a group; the heads' metrics first. */
function comparedCharts() {
  const ends = [...new Set(heads.map(([, head]) => `/dev_${head.metric}`))];
  const loss = (name) => name === "loss" || name.endsWith("/loss");
  const rank = (name) => (ends.some((end) => name.endsWith(end)) ? 0 : loss(name) ? 1 : 2);
  const line = (points, index) => ({ name: payload.groups[index].name, hue: index, points: points ?? [] });
  const made = Object.entries(payload.curves).map(([title, groups]) => ({
    title, rank: rank(title), log: true, smooth: true,
    series: groups.map(line).filter((one) => one.points.length),
  })).filter(({ series }) => series.length).sort((a, b) => a.rank - b.rank);
  return [made.filter((each) => each.rank < 2), made.filter((each) => each.rank === 2)];
}

function drawCharts(node, [first, rest]) {
  node.append(...first.map(chart));
  if (!rest.length) return;
  const more = h("details", { class: "card more", ontoggle: () => {
    if (inside.childElementCount === 0) inside.append(...rest.map(chart));
  } }, h("summary", {}, `${plural(rest.length, "more curve")}`));
  const inside = h("div", { class: "charts" });
  more.append(inside);
  node.after(more);
}

/** A head's section shows one part at a time: test where it has examples. */
function connectHead(section) {
  const { parts } = payload.heads[section.dataset.head];
  const buttons = [...section.querySelectorAll("[data-part]")];
  const place = section.querySelector("[data-browser]");
  let list = null;
  const choose = (part) => {
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.part === part);
    for (const card of section.querySelectorAll("[data-of]")) card.hidden = card.dataset.of !== part;
    if (!place) return;
    const errors = parts[part].errors ?? [];
    place.parentElement.querySelector("h3").replaceChildren("Errors ", h("small", {}, part));
    list = errors.length ? errorBrowser(place, errors) : null;
    if (!list) place.replaceChildren(h("p", { class: "empty" }, `No error is kept of ${part}.`));
  };
  for (const button of buttons) button.addEventListener("click", () => choose(button.dataset.part));
  section.addEventListener("click", ({ target }) => {
    const pair = target.closest("[data-true]");
    if (!pair || !list || pair.dataset.true === pair.dataset.predicted) return;
    list.choose([pair.dataset.true, pair.dataset.predicted]);
    place.parentElement.scrollIntoView({ behavior: calm() ? "auto" : "smooth", block: "start" });
  });
  const names = Object.keys(parts);
  if (names.length) choose(["test", "dev", ...names].find((part) => parts[part]?.examples) ?? names[0]);
}

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** A label's curve stands out from the others while its button is pressed. */
function connectLabels(node) {
  node.addEventListener("click", ({ target }) => {
    const button = target.closest("[data-curve]");
    if (!button) return;
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    const pressed = node.querySelectorAll("[data-curve][aria-pressed=true]");
    const chosen = new Set([...pressed].map((each) => each.dataset.curve));
    node.classList.toggle("chosen", chosen.size > 0);
    for (const each of node.querySelectorAll("[data-label]")) {
      each.classList.toggle("on", chosen.has(each.dataset.label));
    }
  });
}

function connectCopy(button) {
  const text = button.parentElement.querySelector("pre").textContent;
  button.addEventListener("click", async () => {
    const done = await navigator.clipboard.writeText(text).then(() => true, () => false);
    button.textContent = done ? "Copied" : "Not allowed";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

/** The index marks the section that is being read. */
function followIndex() {
  const links = new Map([...document.querySelectorAll("#index a")].map((link) => [link.getAttribute("href").slice(1), link]));
  const index = document.getElementById("index");
  const sections = [...document.querySelectorAll("main > section")];
  let last = null;
  const follow = () => {
    const begun = (section) => section.getBoundingClientRect().top < innerHeight / 3;
    const link = links.get((sections.findLast(begun) ?? sections[0]).id);
    if (link === last) return;
    last?.removeAttribute("aria-current");
    link.setAttribute("aria-current", "location");
    index.scrollTo({ left: link.offsetLeft - index.clientWidth / 3, top: link.offsetTop - index.clientHeight / 2 });
    last = link;
  };
  addEventListener("scroll", () => requestAnimationFrame(follow), { passive: true });
  follow();
}

const place = document.getElementById("charts");
if (place) drawCharts(place, payload.groups ? comparedCharts() : historyCharts());
for (const section of document.querySelectorAll("section[data-head]")) connectHead(section);
for (const node of document.querySelectorAll("[data-browser=disagreements]")) {
  disagreementBrowser(node, payload.heads[node.dataset.head], payload.groups);
}
for (const node of document.querySelectorAll(".curves-of-labels")) connectLabels(node);
for (const button of document.querySelectorAll("[data-copy]")) connectCopy(button);
followIndex();
