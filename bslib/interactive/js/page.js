// Controls, pictures and numbers of an explorer: drawn anew from class counts whenever a control changes.

/** What anywidget calls, in Jupyter, and _static/widgets.js in the static page. */
async function render({ model, el }) {
  const data = model.get("data"), batches = await unpack(model.get("counts"), data.batches);
  const view = views[model.get("chapter")](data, batches);
  const panels = h("div", { class: "panels" }), numbers = h("div", { class: "numbers", "aria-live": "polite" });
  const words = h("p", { class: "words" }), source = h("p", { class: "source" });
  const controls = view.controls.map((spec) => control(spec, update));
  const save = h("button", { type: "button", onclick: () => download(shown.table, model.get("chapter")) }, "Data as CSV");
  const notes = data.notes.map((note) => h("p", { class: "source" }, note));
  el.append(
    h("section", { class: "explorer", "aria-label": "Explorer" },
      h("div", { class: "controls" }, ...controls.map((own) => own.element)),
      numbers, panels, words, source, ...notes, save),
  );
  let shown = null, drawn = 0;

  function update() {
    const settings = {};
    for (const own of controls) settings[own.name] = own.settle(settings);
    shown = view.show(settings);
    // No dl: the book's theme and JupyterLab each have rules of their own for those.
    numbers.replaceChildren(...shown.numbers.map(([name, ...values]) =>
      h("div", {}, h("span", { class: "name" }, name), " ", h("span", { class: "value" }, ...values))));
    words.textContent = shown.words ?? "";
    source.textContent = data.parts[settings.part].source;
    draw();
  }

  function draw() {
    const room = panels.clientWidth || 640, both = shown.panels.length > 1 && room >= 560;
    drawn = panels.clientWidth;
    panels.replaceChildren(...shown.panels.map((panel) => panel(both ? Math.floor((room - 16) / 2) : Math.min(room, 640))));
  }

  update();
  const watch = new ResizeObserver(() => panels.clientWidth !== drawn && draw());
  watch.observe(panels);
  return () => watch.disconnect();
}

export default { render };

// --- elements ---

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** A number for readers, with the whole of it in `value`. */
function number(value, digits = 3) {
  const text = Number.isFinite(value) ? value.toFixed(digits).replace("-", "\u2212") : "not defined";
  return h("data", { value: String(value) }, text);
}

const unique = (values) => [...new Set(values)];
const ascending = (values) => unique(values).sort((a, b) => a - b);

/** A select or a range with a name; words in its place where there is nothing to choose.
 *
 * `options(settings)` gives [value, text] pairs; settings of the controls before it are known. */
function control({ name, label, kind, options, initial }, changed) {
  const id = `explorer-${name}-${Math.random().toString(36).slice(2)}`;
  // JupyterLab would take the arrow keys for itself.
  const input = h(kind === "range" ? "input" : "select", { id, "data-lm-suppress-shortcuts": "true" });
  const text = h("output", { for: id });
  const element = h("div", { class: "control", "data-name": name }, h("label", { for: id }, label), input, text);
  let choices = [], value;

  function take(k) {
    value = choices[k][0];
    text.textContent = choices[k][1];
    input.value = k;
    if (kind === "range") input.setAttribute("aria-valuetext", choices[k][1]);
  }

  input.addEventListener("input", () => {
    take(Number(input.value));
    changed();
  });
  if (kind === "range") fill(input, { type: "range", min: 0, step: 1 }, []);
  return {
    name,
    element,
    settle(settings) {
      const now = options(settings);
      if (JSON.stringify(now) !== JSON.stringify(choices)) {
        const places = [value, initial?.(settings)].map((wanted) => now.findIndex(([own]) => own === wanted));
        choices = now;
        if (kind === "range") input.max = choices.length - 1;
        else input.replaceChildren(...choices.map(([, name], k) => h("option", { value: k }, name)));
        take(places.find((k) => k >= 0) ?? 0);
      }
      const alone = choices.length < 2;
      input.hidden = alone;
      text.hidden = !alone && kind !== "range";
      return value;
    },
  };
}

const dataSet = (data) => ({ name: "part", label: "Data set", kind: "select", options: () => data.parts.map((part, k) => [k, part.name]) });
const estimator = (data) => ({ name: "estimator", label: "Estimator", kind: "select", options: () => data.estimators.map((e) => [e, e]) });

const inFull = (v) => (v < 1 ? String(v) : v.toLocaleString("en"));

/** A range over the values of a setting among `rows(settings)`, those of the data set, that `where` leaves over. */
function levels(name, label, data, rows, where = () => true) {
  const options = (settings) =>
    ascending(rows(settings).filter((row) => where(row, settings)).map((row) => row[name])).map((v) => [v, inFull(v)]);
  return { name, label, kind: "range", options, initial: (settings) => data.parts[settings.part][name] };
}

function download(table, name) {
  const cell = (value) => (/[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  const text = table.map((row) => row.map((value) => cell(value ?? "")).join(",") + "\n").join("");
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: `${name}.csv` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// --- drawing ---

const HEIGHT = 300, LEFT = 46, RIGHT = 12, BOTTOM = 40, TOP = 22;
/** W of ten classes is at most log 10. */
const MOST = Math.log(10);

/** A frame with axes; `x` and `y` are { from, to, label }, `marks` draws into it with functions of its scales.
 *
 * `x.names` are the texts at 0, 1, ...; where `y` has no label, it has no ticks. */
function frame(width, { title = "", x, y, describe, height = HEIGHT }, marks) {
  const px = (v) => LEFT + ((v - x.from) / (x.to - x.from)) * (width - LEFT - RIGHT);
  const py = (v) => height - BOTTOM - ((v - y.from) / (y.to - y.from)) * (height - BOTTOM - TOP);
  const [left, right, bottom, top] = [LEFT, width - RIGHT, height - BOTTOM, TOP];
  const grid = s("g", { "aria-hidden": "true" },
    s("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
    s("text", { class: "title", x: left, y: 13 }, title),
    s("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, x.label),
    ...(x.names?.map((name, k) => [k, name]) ?? ticks(x, Math.max(4, width / 90)).map((v) => [v, short(v)])).map(([v, text]) =>
      s("text", { x: px(v), y: bottom + 16, "text-anchor": "middle" }, text)));
  if (y.label) {
    grid.append(
      s("text", { transform: `translate(12 ${(bottom + top) / 2}) rotate(-90)`, "text-anchor": "middle" }, y.label),
      ...ticks(y, 5).flatMap((v) => [
        s("line", { class: "grid", x1: left, x2: right, y1: py(v), y2: py(v) }),
        s("text", { x: left - 6, y: py(v) + 4, "text-anchor": "end" }, short(v)),
      ]));
  }
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}` }, grid);
  if (describe) fill(svg, { role: "img", "aria-label": describe }, []);
  svg.append(...marks(px, py, { left, right, bottom, top }));
  return svg;
}

/** Round numbers within a range, about so many. */
function ticks({ from, to }, about) {
  const rough = (to - from) / about, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((v) => v >= rough);
  const found = [];
  for (let k = Math.ceil(from / step - 1e-9); k * step <= to + step * 1e-9; k++) found.push(k * step);
  return found;
}

const short = (v) => Number(v.toPrecision(3)).toLocaleString("en").replace("-", "\u2212");

const curve = (kind, points) => s("polyline", { class: `curve ${kind}`, points: points.join(" ") });

/** Shares of values in bins of one width, [[start, end, share]]. */
function histogram(values, from, to, bins) {
  const width = (to - from) / bins, found = Array.from({ length: bins }, (_, k) => [from + k * width, from + (k + 1) * width, 0]);
  for (const v of values) found[Math.max(0, Math.min(bins - 1, Math.floor((v - from) / width)))][2] += 1 / values.length;
  return found;
}

function bars(values, { from, to, bins = 40, label, title, describe }, more = () => []) {
  const found = histogram(values, from, to, bins), most = Math.max(...found.map((bin) => bin[2]));
  return (width) =>
    frame(width, { title, x: { from, to, label }, y: { from: 0, to: most * 1.08, label: "share of images" }, describe }, (px, py, box) => [
      ...found.filter((bin) => bin[2]).map(([start, end, share]) =>
        s("rect", { class: "bar", x: px(start) + 0.5, width: px(end) - px(start) - 1, y: py(share), height: py(0) - py(share) })),
      ...more(px, py, box),
    ]);
}

/** A lying box plot: whiskers to the last values that are no outliers (Eq. 4), line: median, diamond: mean, dashes: means of networks. */
function boxPlot(values, means, px, middle, kind) {
  const [first, half, third] = quantiles(values, [0.25, 0.5, 0.75]), kept = withoutOutliers(values);
  const ends = [Math.min(...kept), Math.max(...kept)], size = 12, inside = new Set(kept);
  const centre = px(mean(values));
  return s("g", { class: `box ${kind}` },
    ...unique(values).filter((v) => !inside.has(v)).map((v) => s("circle", { class: "outlier", cx: px(v), cy: middle, r: 1.8 })),
    s("line", { x1: px(ends[0]), x2: px(ends[1]), y1: middle, y2: middle }),
    ...ends.map((end) => s("line", { x1: px(end), x2: px(end), y1: middle - 6, y2: middle + 6 })),
    s("rect", { x: px(first), width: Math.max(px(third) - px(first), 1), y: middle - size, height: 2 * size }),
    s("line", { class: "median", x1: px(half), x2: px(half), y1: middle - size, y2: middle + size }),
    ...means.map((m) => s("line", { class: "mean", x1: px(m), x2: px(m), y1: middle + size + 2, y2: middle + size + 9 })),
    s("path", { class: "mean", d: `M ${centre - 5} ${middle} l 5 -6 l 5 6 l -5 6 z` }));
}

/** Where the axis of W ends: the same for all settings unless an estimator goes further. */
const reachOf = (values) => ({ from: Math.min(0, ...values), to: Math.max(MOST, ...values) });

// --- the chapters ---

const views = { parameters: ofParameters, surface: ofSurface, glance: ofGlance, correlation: ofCorrelation, patterns: ofPatterns, hiding: ofHiding, origin: ofOrigin };

function ofParameters(data, batches) {
  const part = (settings) => data.parts[settings.part], own = (settings) => batches.filter((b) => b.part === settings.part);
  return {
    controls: [
      dataSet(data),
      levels("sigma", "Noise level σ", data, own),
      levels("n", "Noisy copies n", data, own, (b, settings) => b.sigma === settings.sigma),
      estimator(data),
    ],
    show(settings) {
      const chosen = own(settings).filter((b) => b.sigma === settings.sigma && b.n === settings.n);
      const ofEach = chosen.map((b) => b.counts.map(estimators[settings.estimator])), all = ofEach.flat(), means = ofEach.map(mean);
      const outliers = all.length - withoutOutliers(all).length, quartiles = quantiles(all, [0.25, 0.5, 0.75]);
      const reach = reachOf(all), label = "W (nats)", describe = `Distribution of W over ${all.length} images and its box plot`;
      return {
        numbers: [
          ["mean", number(mean(all))],
          ["spread", number(mean(ofEach.map(deviation)))],
          ["median", number(quartiles[1])],
          ["quartiles", number(quartiles[0]), " to ", number(quartiles[2])],
          ["outliers", number(outliers, 0), ` of ${all.length}`],
        ],
        words: "Spread: the standard deviation over the images of a batch, averaged over networks. Line: median; diamond: mean; "
          + "dashes below: means of the single networks.",
        panels: [
          bars(all, { ...reach, label, title: "how W is distributed", describe }),
          (width) => frame(width, { title: "the same as a box plot", x: { ...reach, label }, y: { from: 0, to: 1 }, height: 130 },
            (px, py) => [boxPlot(all, means, px, py(0.5), "clean")]),
        ],
        table: [
          ["data", "sigma", "n", "estimator", "network", "image", "W"],
          ...ofEach.flatMap((w, k) => w.map((v, image) =>
            [part(settings).name, settings.sigma, settings.n, settings.estimator, chosen[k].network, image, v])),
        ],
      };
    },
  };
}

function ofSurface(data, batches) {
  const part = (settings) => data.parts[settings.part], titles = { x: "W (nats)", change: "W with the trigger minus W without" };
  const own = (settings) => batches.filter((b) => b.part === settings.part);
  const triggers = (settings) => [
    ["active", `active (trigger ${part(settings).active})`],
    ["inactive", `inactive (trigger ${part(settings).inactive})`],
    ["none", "none"],
  ];
  const networks = (settings) => [
    ["all", "all"],
    ...ascending(own(settings).map((b) => b.network)).map((k) => [k, `network ${k + 1}`]),
  ];
  return {
    controls: [
      dataSet(data),
      { name: "trigger", label: "Trigger", kind: "select", options: triggers },
      { name: "network", label: "Networks", kind: "select", options: networks },
      levels("sigma", "Noise level σ", data, own),
      estimator(data),
    ],
    show(settings) {
      const of = (kind) => own(settings)
        .filter((b) => b.kind === kind && b.sigma === settings.sigma)
        .filter((b) => settings.network === "all" || b.network === settings.network)
        .map((b) => b.counts.map(estimators[settings.estimator]));
      const clean = of("clean"), with_ = settings.trigger === "none" ? null : of(settings.trigger);
      const boxes = [["clean", clean], ...(with_ ? [[settings.trigger, with_]] : [])];
      const change = with_?.flatMap((w, k) => w.map((v, image) => v - clean[k][image]));
      const share = (test) => number((100 * change.filter(test).length) / change.length, 0);
      const reach = reachOf(boxes.flatMap(([, w]) => w.flat()));
      const far = Math.max(0.05, ...(change ?? []).map(Math.abs));
      const plots = (width) => frame(width, { title: "W of images", x: { ...reach, label: titles.x }, y: { from: 0, to: 1 },
        describe: boxes.map(([kind, w]) => `${kind}: mean ${mean(w.flat()).toFixed(3)}`).join("; ") }, (px, py, { left }) =>
        boxes.flatMap(([kind, w], k) => {
          const middle = py(with_ ? 0.72 - 0.48 * k : 0.5);
          return [s("text", { x: left, y: middle - 20 }, kind === "clean" ? "clean" : `${kind} trigger`),
            boxPlot(w.flat(), w.map(mean), px, middle, kind)];
        }));
      const middle = change && mean(change);
      const changes = change && bars(change, { from: -far, to: far, bins: 41, label: titles.change, title: "differences, image by image",
        describe: `Paired differences: mean ${middle.toFixed(3)}` }, (px, py, { bottom, top }) => [
        s("line", { class: "zero", x1: px(0), x2: px(0), y1: bottom, y2: top }),
        s("line", { class: "mean", x1: px(middle), x2: px(middle), y1: bottom, y2: top }),
      ]);
      return {
        numbers: [
          ["mean, clean", number(mean(clean.flat()))],
          ...(with_ ? [
            ["mean, with trigger", number(mean(with_.flat()))],
            ["mean difference", number(middle)],
            ["smoother with it", share((d) => d < 0), " %"],
            ["wobblier with it", share((d) => d > 0), " %"],
          ] : []),
        ],
        words: with_
          ? "Line: median; diamond: mean; dashes below a box: means of the single networks. Differences are those of one image with the trigger "
            + "and without, under the same noise; the red line is their mean."
          : "With a trigger chosen, each image is compared with itself.",
        panels: changes ? [plots, changes] : [plots],
        table: [
          ["data", "sigma", "estimator", "network", "image", "W clean", ...(with_ ? [`W ${settings.trigger}`] : [])],
          ...clean.flatMap((w, k) => w.map((v, image) => [part(settings).name, settings.sigma, settings.estimator,
            settings.network === "all" ? k : settings.network, image, v, ...(with_ ? [with_[k][image]] : [])])),
        ],
      };
    },
  };
}

/** The main result: mean W with and without the trigger against the noise level, one of which a slider chooses. */
function ofGlance(data) {
  const part = (settings) => data.parts[settings.part];
  const kinds = [["clean", "without the trigger"], ["active", "with the trigger"]], coin = Math.log(2);
  return {
    controls: [
      dataSet(data),
      levels("sigma", "Noise level σ (black is 0, white is 1)", data, (settings) => part(settings).series),
    ],
    show(settings) {
      const { series } = part(settings), k = series.findIndex((one) => one.sigma === settings.sigma), row = series[k];
      const effect = row.high < 0 ? "smoother: noise changes its prediction less" : row.low > 0 ? "rougher: noise changes its prediction more" : "neither clearly smoother nor clearly rougher";
      const names = series.map((one) => short(one.sigma).replace(/^0\./, "."));
      const x = { from: -0.3, to: series.length - 0.7, label: "noise level σ", names };
      const y = { from: 0, to: 1.12 * Math.max(coin, ...series.flatMap((one) => [one.clean, one.active])), label: "W, averaged" };
      const describe = `At noise level ${row.sigma}: ${kinds.map(([kind, name]) => `W ${row[kind].toFixed(3)} ${name}`).join(", ")}`;
      return {
        numbers: kinds.map(([kind, name]) => [`W ${name}`, number(row[kind], 2)]),
        words: `At this noise level the trigger makes the network ${effect}. W is 0 when noise never changes the prediction.`,
        panels: [(width) => frame(width, { x, y, describe, height: 240 }, (px, py, { left, right, bottom, top }) => [
          s("line", { class: "zero", x1: left, x2: right, y1: py(coin), y2: py(coin) }),
          s("text", { class: "soft", x: left + 4, y: py(coin) - 5 }, "a coin toss between two classes"),
          s("line", { class: "axis", x1: px(k), x2: px(k), y1: bottom, y2: top }),
          ...kinds.flatMap(([kind, name]) => {
            const last = series.length - 1, above = series[last][kind] >= Math.max(...kinds.map(([other]) => series[last][other]));
            return [
              curve(kind, series.map((one, place) => [px(place), py(one[kind])])),
              s("circle", { class: `dot ${kind}`, cx: px(k), cy: py(row[kind]), r: 6 }),
              s("text", { class: `name ${kind}`, x: right, y: py(series[last][kind]) + (above ? -10 : 22), "text-anchor": "end" }, name),
            ];
          }),
        ])],
        table: [["data", "sigma", "mean W clean", "mean W with trigger", "difference low", "difference high"],
          ...series.map((one) => [part(settings).name, one.sigma, one.clean, one.active, one.low, one.high])],
      };
    },
  };
}

function ofCorrelation(data) {
  const part = (settings) => data.parts[settings.part], own = (settings) => part(settings).means;
  const rule = {
    name: "below", label: "Pairs left out", kind: "select", initial: (settings) => part(settings).below[1],
    options: (settings) => part(settings).below.map((least) => [least, least ? `success below ${least}` : "none"]),
  };
  return {
    controls: [
      dataSet(data),
      levels("sigma", "Noise level σ", data, own),
      levels("n", "Noisy copies n", data, own, (m, settings) => m.sigma === settings.sigma),
      rule,
    ],
    show(settings) {
      const { pairs, means } = part(settings);
      const w = means.find((m) => m.sigma === settings.sigma && m.n === settings.n).W;
      const all = pairs.success.slice(0, w.length).map((success, k) => ({  // further networks come last, at one noise level alone
        success, W: w[k], kept: success >= settings.below, trigger: pairs.trigger[k],
        name: `network ${pairs.network[k] + 1}, trigger ${pairs.trigger[k]}` + (pairs.class[k] < 0 ? "" : `, class ${pairs.class[k]}`),
        row: [pairs.network[k], pairs.trigger[k], pairs.class[k] < 0 ? "" : pairs.class[k], success, w[k]],
      }));
      const kept = all.filter((pair) => pair.kept), success = kept.map((pair) => pair.success), W = kept.map((pair) => pair.W);
      return {
        numbers: [
          ["Kendall's τ", number(kendall(success, W))],
          ["Pearson's r", number(pearson(success, W))],
          ["pairs", number(kept.length, 0)],
          ["left out", number(all.length - kept.length, 0)],
        ],
        words: "",
        panels: [(width) => scatter(all, width)],
        table: [["data", "sigma", "n", "network", "trigger", "class", "success", "mean W", "kept"],
          ...all.map((pair) => [part(settings).name, settings.sigma, settings.n, ...pair.row, pair.kept])],
      };
    },
  };
}

/** Success against W; a point says what it is when the pointer or the arrow keys come to it. */
function scatter(pairs, width) {
  const detail = h("p", { class: "detail", role: "status" }), triggers = ascending(pairs.map((pair) => pair.trigger));
  const hint = "Point at a pair, or move among them with the arrow keys.";
  const inOrder = [...pairs].sort((p, q) => p.W - q.W), id = `pair-${Math.random().toString(36).slice(2)}`;
  detail.textContent = hint;
  const x = { from: 0, to: Math.max(...pairs.map((pair) => pair.W)) * 1.04 || 1, label: "mean of W with the trigger (nats)" };
  const svg = frame(width, { x, y: { from: -0.03, to: 1.03, label: "success" } }, (px, py, { left }) => [
    s("g", { class: "legend", "aria-hidden": "true" }, ...triggers.flatMap((trigger, k) => [
      mark(k, left + 8 + 82 * k, 9, {}), s("text", { x: left + 18 + 82 * k, y: 13 }, `trigger ${trigger}`)])),
    s("g", { class: "points", role: "listbox", tabindex: 0, "aria-label": "Pairs, from small to large W", "data-lm-suppress-shortcuts": "true",
      onkeydown: move, onfocus: () => show(at < 0 ? 0 : at), onpointerover: point, onclick: point },
    ...inOrder.map((pair, k) => mark(triggers.indexOf(pair.trigger), px(pair.W), py(pair.success), {
      role: "option", id: `${id}-${k}`, "aria-selected": "false", "aria-label": told(pair), "data-pair": k, kept: pair.kept }))),
  ]);
  const list = svg.querySelector(".points");
  let at = -1;

  function told(pair) {
    return `${pair.name}: success ${(100 * pair.success).toFixed(1)} %, mean W ${pair.W.toFixed(3)}${pair.kept ? "" : ", left out"}`;
  }
  function show(k) {
    list.children[at]?.setAttribute("aria-selected", "false");
    at = k;
    list.children[at].setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", `${id}-${at}`);
    detail.textContent = told(inOrder[at]);
  }
  function point(event) {
    if (event.target.dataset.pair) show(Number(event.target.dataset.pair));
  }
  function move(event) {
    const step = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: inOrder.length - 1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    show(Math.max(0, Math.min(inOrder.length - 1, step)));
  }
  return h("div", {}, svg, detail);
}

/** A circle, or for the second kind a square; hollow where it is not kept. */
function mark(kind, x, y, { kept = true, ...attributes }) {
  const all = { ...attributes, class: `mark kind-${kind}${kept ? "" : " hollow"}` };
  return kind ? s("rect", { ...all, x: x - 4.5, y: y - 4.5, width: 9, height: 9 }) : s("circle", { ...all, cx: x, cy: y, r: 5 });
}

function ofPatterns(data, batches) {
  const part = (settings) => data.parts[settings.part];
  const own = (settings) => batches.filter((b) => b.part === settings.part);
  // What is to be found, by name: which batches those are.
  const wanted = {
    own: () => (b) => b.carried === "own",
    working: (settings) => (b) => b.carried === "own" && b.success >= part(settings).effective,
    trigger: (settings, trigger) => (b) => b.carried === "own" && b.own === Number(trigger),
    universal: (settings, bound) => (b) => b.carried === `universal ${bound}`,
    reversed: () => (b) => b.carried === "reversed",
  };
  const finds = (settings) => {
    const [name, detail] = settings.pattern.split(" ");
    return wanted[name](settings, detail);
  };
  const crafted = (settings) => /^(universal|reversed)/.test(settings.pattern);
  const names = (settings) => [
    ["own", "own triggers"],
    ["working", "own triggers that succeed on 90 %"],
    ...part(settings).triggers.map((t) => [`trigger ${t}`, `own trigger ${t}`]),
    ...ascending(part(settings).bounds).map((b) => [`universal ${b}`, `universal perturbations, bound ${b}/255`]),
    ["reversed", "patches of Neural Cleanse"],
  ].filter(([pattern]) => own(settings).some(finds({ ...settings, pattern })));
  const points = (settings) => part(settings).points[crafted(settings) ? 1 : 0];
  const sizes = (settings) => ascending([...part(settings).batches.filter((size) => size < points(settings)), points(settings)]);
  const forms = [["mean signed", "around the mean, with direction"], ["median signed", "around the median, with direction"],
    ["mean unsigned", "around the mean, no direction"]];
  const w = new Map(); // of batches, once
  const wOf = (batch) => (w.has(batch) || w.set(batch, batch.counts.map(plugIn)), w.get(batch));

  /** Scores of the batches against the clean one of their network, cut into batches of one size. */
  function scores(chosen, settings) {
    const [center, sign] = settings.form.split(" ");
    return chosen.flatMap((batch) => {
      const clean = wOf(batches.find((b) => b.carried === "clean" && ["part", "network", "sigma"].every((name) => b[name] === batch[name])));
      const tested = wOf(batch), found = [];
      for (let start = 0; start + settings.size <= points(settings); start += settings.size) {
        const score = levene(clean.slice(start, start + settings.size), tested.slice(start, start + settings.size), center);
        found.push({ batch, score: sign === "signed" ? score : Math.abs(score) });
      }
      return found;
    });
  }

  return {
    controls: [
      dataSet(data),
      { name: "pattern", label: "To be found", kind: "select", options: names },
      levels("sigma", "Noise level σ", data, own, (b, settings) => finds(settings)(b)),
      { name: "size", label: "Points in a batch", kind: "range", options: (settings) => sizes(settings).map((size) => [size, String(size)]), initial: points },
      { name: "form", label: "Levene's test", kind: "select", options: () => forms },
    ],
    show(settings) {
      const here = own(settings).filter((b) => b.sigma === settings.sigma), positive = here.filter(finds(settings));
      const networks = new Set(positive.map((b) => b.network));
      const negative = here.filter((b) => crafted(settings)
        ? b.carried === "nothing" && networks.has(b.network)
        : b.carried === "nothing" || b.carried === "unseen");
      const [found, others] = [positive, negative].map((chosen) => scores(chosen, settings));
      const [high, low] = [found, others].map((some) => some.map((one) => one.score)), area = auc(high, low), corners = roc(high, low);
      return {
        numbers: [
          ["area under the curve", number(area)],
          ["batches to be found", number(high.length, 0)],
          ["others", number(low.length, 0)],
          ["median score", number(median(high), 1), " and ", number(median(low), 1)],
        ],
        words: "Others: " + (crafted(settings) ? "second clean batches of the same networks." : "second clean batches, and triggers that a network never saw.")
          + " The score is \u2212log p of Levene's test, negative where W varies more than on clean images.",
        panels: [(width) => {
          const size = Math.min(width, 380);
          return frame(size, { x: { from: 0, to: 1, label: "false positive rate" }, y: { from: 0, to: 1.001, label: "true positive rate" },
            height: size, describe: `ROC curve, area ${area.toFixed(3)}` }, (px, py) => [
            s("line", { class: "zero", x1: px(0), y1: py(0), x2: px(1), y2: py(1) }),
            curve("", corners.map(([x, y]) => [px(x), py(y)])),
          ]);
        }],
        table: [["data", "sigma", "points", "test", "to be found", "carried", "network", "score"],
          ...[[true, found], [false, others]].flatMap(([is, some]) => some.map(({ batch, score }) =>
            [part(settings).name, settings.sigma, settings.size, settings.form, is, batch.carried, batch.network, score]))],
      };
    },
  };
}

function ofHiding(data) {
  const part = (settings) => data.parts[settings.part], all = (settings) => part(settings).means;
  const attacks = (settings) => unique(all(settings).map((m) => m.attack)).map((name) => [name, name.replace("-", ", trigger ")]);
  const sameAttack = (m, settings) => m.attack === settings.attack;

  /** Mean W of each network, without (circles) and with the trigger (squares), at the places of a setting; lines: their means. */
  function curves(rows, name, title, label) {
    const places = ascending(rows.map((m) => m[name])), kinds = ["without", "with"];
    const means = (kind) => places.map((v) => mean(rows.filter((m) => m[name] === v).map((m) => m[kind])));
    const most = Math.max(0.05, ...rows.flatMap((m) => [m.without, m.with]));
    const describe = kinds.map((kind) => `W ${kind} the trigger: ${means(kind).map((v) => v.toFixed(3)).join(", ")}`).join("; ");
    return (width) => frame(width, { title, describe, x: { from: -0.5, to: places.length - 0.5, label, names: places.map(inFull) },
      y: { from: 0, to: 1.05 * most, label: "mean of W (nats)" } }, (px, py) => kinds.flatMap((kind, k) => [
      curve(`kind-${k}`, means(kind).map((v, at) => [px(at), py(v)])),
      ...rows.map((m) => mark(k, px(places.indexOf(m[name]) + 0.2 * k - 0.1), py(m[kind]), {})),
    ]));
  }

  return {
    controls: [
      dataSet(data),
      { name: "attack", label: "Attack", kind: "select", options: attacks },
      levels("covers", "Covers", data, all, sameAttack),
      levels("sigma", "Noise level σ", data, all),
    ],
    show(settings) {
      const own = all(settings).filter((m) => sameAttack(m, settings));
      const level = own.filter((m) => m.sigma === settings.sigma), group = own.filter((m) => m.covers === settings.covers);
      const here = group.filter((m) => m.sigma === settings.sigma), of = (name) => mean(here.map((m) => m[name]));
      return {
        numbers: [
          ["success", number(of("success"))],
          ["W without the trigger", number(of("without"))],
          ["W with it", number(of("with"))],
          ["ratio", number(of("with") / of("without"), 2)],
        ],
        words: "Circles: images without the trigger, squares: the same images with it, one mark a network. The attacker hides where both are alike.",
        panels: [
          curves(level, "covers", `W at σ = ${settings.sigma}`, "covers"),
          curves(group, "sigma", `W with ${inFull(settings.covers)} covers`, "noise level σ"),
        ],
        table: [["data", "attack", "covers", "sigma", "network", "success", "W without", "W with"],
          ...own.map((m) => [part(settings).name, m.attack, m.covers, m.sigma, m.network, m.success, m.without, m.with])],
      };
    },
  };
}

function ofOrigin(data) {
  const part = (settings) => data.parts[settings.part];
  return {
    controls: [
      dataSet(data),
      { name: "poisons", label: "Poisoned images", kind: "range", options: (settings) => part(settings).poisons.map((v) => [v, inFull(v)]) },
      { name: "sigma", label: "Noise level σ", kind: "range", initial: (settings) => part(settings).sigma,
        options: (settings) => part(settings).sigmas.map((v) => [v, String(v)]) },
    ],
    show(settings) {
      const { sides, greys, cells } = part(settings), at = cells.filter((c) => ["poisons", "sigma"].every((name) => c[name] === settings[name]));
      const far = Math.max(0.05, ...cells.map((c) => Math.abs(c.W - c.clean))), changes = at.map((c) => c.W - c.clean);
      const map = (name, of, most) => (width) => h("table", { class: "heat", style: `width: ${width}px` },
        h("caption", {}, name),
        h("tr", {}, h("th", { scope: "col" }, "grey \\ side"), ...sides.map((side) => h("th", { scope: "col" }, String(side)))),
        ...[...greys].reverse().map((grey) => h("tr", {}, h("th", { scope: "row" }, grey.toFixed(2)), ...sides.map((side) => {
          const cell = at.find((c) => c.side === side && c.grey === grey), value = cell && of(cell);
          const much = cell ? Math.round((45 * Math.abs(value)) / most) : 0;
          return h("td", { class: value > 0 && name !== "success" ? "rougher" : null, style: `--much: ${much}%` }, cell ? number(value, 2) : "?");
        }))));
      return {
        numbers: [
          ["success, mean of the squares", number(mean(at.map((c) => c.success)))],
          ["change of W, mean", number(mean(changes))],
          ["smoother with it", number(changes.filter((d) => d < 0).length, 0), ` of ${at.length}`],
          ["not yet run", number(sides.length * greys.length - at.length, 0)],
        ],
        words: "Change: mean W with the square minus mean W without; blue is smoother, red is rougher. Side in pixels, grey from black (0) to white (1).",
        panels: [map("success", (c) => c.success, 1), map("change of W", (c) => c.W - c.clean, far)],
        table: [["data", "side", "grey", "poisons", "sigma", "success", "W clean", "W"],
          ...at.map((c) => [part(settings).name, c.side, c.grey, c.poisons, c.sigma, c.success, c.clean, c.W])],
      };
    },
  };
}
