// Controls, pictures and numbers of an explorer: drawn anew from class counts whenever a control changes.

/** What anywidget calls, in Jupyter, and _static/widgets.js in the static page. */
async function render({ model, el }) {
  const data = model.get("data"), batches = await unpack(model.get("counts"), data.batches), name = model.get("chapter");
  const views = data.parts.map((part, k) => chapters[name](part, batches.filter((b) => b.part === k), data.estimators));
  const dataSet = select("part", "Data set", () => data.parts.map((part, k) => [k, part.name]));
  const specs = views.map((view) => [dataSet, ...view.controls]), controls = specs[0].map((spec) => control(spec, update));
  const panels = h("div", { class: "panels" }), numbers = h("div", { class: "numbers", "aria-live": "polite" });
  const words = h("p", { class: "words" }), source = h("p", { class: "source" });
  const save = h("button", { type: "button", onclick: () => download(table, name) }, "Data as CSV");
  el.append(
    h("section", { class: "explorer", "aria-label": "Explorer" },
      h("div", { class: "controls" }, ...controls.map((own) => own.element)),
      numbers, panels, words, source, ...data.notes.map((note) => h("p", { class: "source" }, note)), save),
  );
  let shown, table, drawn;

  function update() {
    const settings = {};
    controls.forEach((own, k) => {
      const { name, options, initial } = specs[settings.part ?? 0][k];
      settings[name] = own.settle(options(settings), initial?.(settings));
    });
    const part = data.parts[settings.part];
    shown = views[settings.part].show(settings);
    table = [["data", ...shown.head], ...shown.rows.map((row) => [part.name, ...row])];
    // No dl: the book's theme and JupyterLab each have rules of their own for those.
    numbers.replaceChildren(...shown.numbers.map(([name, ...values]) =>
      h("div", {}, h("span", { class: "name" }, name), " ", h("span", { class: "value" }, ...values))));
    words.textContent = shown.words ?? "";
    source.textContent = part.source;
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

/** The rows that have the settings' values of some names. */
const alike = (rows, settings, ...names) => rows.filter((row) => names.every((name) => row[name] === settings[name]));

/** A select or a range with a name; words in its place where there is nothing to choose. */
function control({ name, label, kind }, changed) {
  const id = `explorer-${name}-${Math.random().toString(36).slice(2)}`, ranged = kind === "range";
  // JupyterLab would take the arrow keys for itself.
  const input = h(ranged ? "input" : "select", { id, "data-lm-suppress-shortcuts": "true", ...(ranged && { type: "range", min: 0, step: 1 }) });
  const text = h("output", { for: id });
  const element = h("div", { class: "control", "data-name": name }, h("label", { for: id }, label), input, text);
  let choices = [], value;

  function take(k) {
    [value, text.textContent] = choices[k];
    input.value = k;
    if (ranged) input.setAttribute("aria-valuetext", choices[k][1]);
  }

  input.addEventListener("input", () => {
    take(Number(input.value));
    changed();
  });
  return {
    element,
    /** Offer [value, text] pairs; return the chosen value: the one before, else `initial`, else the first. */
    settle(options, initial) {
      if (JSON.stringify(options) !== JSON.stringify(choices)) {
        const places = [value, initial].map((wanted) => options.findIndex(([own]) => own === wanted));
        choices = options;
        if (ranged) input.max = choices.length - 1;
        else input.replaceChildren(...choices.map(([, name], k) => h("option", { value: k }, name)));
        take(places.find((k) => k >= 0) ?? 0);
      }
      input.hidden = choices.length < 2;
      text.hidden = !input.hidden && !ranged;
      return value;
    },
  };
}

const inFull = (v) => (v < 1 ? String(v) : v.toLocaleString("en"));

// Controls of a view: functions of the settings of the controls before them give [value, text] pairs, and the value to begin with.
const select = (name, label, options, initial) => ({ name, label, kind: "select", options, initial });
const range = (name, label, values, initial) =>
  ({ name, label, kind: "range", options: (settings) => values(settings).map((v) => [v, inFull(v)]), initial });
const estimator = (names) => select("estimator", "Estimator", () => names.map((name) => [name, name]));

/** A range over the values of a setting in some rows; it begins with that of the data set. */
const levels = (name, label, part, rows) => range(name, label, (settings) => ascending(rows(settings).map((row) => row[name])), () => part[name]);

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
    line("axis", left, right, bottom, bottom),
    s("text", { class: "title", x: left, y: 13 }, title),
    s("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, x.label),
    ...(x.names?.map((name, k) => [k, name]) ?? ticks(x, Math.max(4, width / 90)).map((v) => [v, short(v)])).map(([v, text]) =>
      s("text", { x: px(v), y: bottom + 16, "text-anchor": "middle" }, text)));
  if (y.label) {
    grid.append(
      s("text", { transform: `translate(12 ${(bottom + top) / 2}) rotate(-90)`, "text-anchor": "middle" }, y.label),
      ...ticks(y, 5).flatMap((v) => [
        line("grid", left, right, py(v), py(v)),
        s("text", { x: left - 6, y: py(v) + 4, "text-anchor": "end" }, short(v)),
      ]));
  }
  return s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, ...(describe && { role: "img", "aria-label": describe }) },
    grid, ...marks(px, py, { left, right, bottom, top }));
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

const line = (kind, x1, x2, y1, y2) => s("line", { class: kind, x1, x2, y1, y2 });
const curve = (kind, points) => s("polyline", { class: `curve ${kind}`, points: points.join(" ") });

/** A histogram: shares of values in bins of one width. */
function bars(values, { from, to, bins = 40, label, title, describe }, more = () => []) {
  const step = (to - from) / bins, shares = Array(bins).fill(0);
  for (const v of values) shares[Math.max(0, Math.min(bins - 1, Math.floor((v - from) / step)))] += 1 / values.length;
  const y = { from: 0, to: Math.max(...shares) * 1.08, label: "share of images" };
  return (width) => frame(width, { title, x: { from, to, label }, y, describe }, (px, py, box) => [
    ...shares.flatMap((share, k) => {
      const x = px(from + k * step);
      return share ? s("rect", { class: "bar", x: x + 0.5, width: px(from + (k + 1) * step) - x - 1, y: py(share), height: py(0) - py(share) }) : [];
    }),
    ...more(px, py, box),
  ]);
}

/** A lying box plot: whiskers to the last values that are no outliers (Eq. 4), line: median, diamond: mean, dashes: means of networks. */
function boxPlot(values, means, px, middle, kind) {
  const [first, half, third] = quantiles(values, [0.25, 0.5, 0.75]), kept = withoutOutliers(values);
  const ends = [Math.min(...kept), Math.max(...kept)].map(px), size = 12, inside = new Set(kept);
  return s("g", { class: `box ${kind}` },
    ...unique(values).filter((v) => !inside.has(v)).map((v) => s("circle", { class: "outlier", cx: px(v), cy: middle, r: 1.8 })),
    line(null, ...ends, middle, middle),
    ...ends.map((end) => line(null, end, end, middle - 6, middle + 6)),
    s("rect", { x: px(first), width: Math.max(px(third) - px(first), 1), y: middle - size, height: 2 * size }),
    line("median", px(half), px(half), middle - size, middle + size),
    ...means.map((m) => line("mean", px(m), px(m), middle + size + 2, middle + size + 9)),
    s("path", { class: "mean", d: `M ${px(mean(values)) - 5} ${middle} l 5 -6 l 5 6 l -5 6 z` }));
}

/** Where the axis of W ends: the same for all settings unless an estimator goes further. */
const reachOf = (values) => ({ from: Math.min(0, ...values), to: Math.max(MOST, ...values) });

// --- the chapters ---

/** Each gives, for a data set and its batches, the controls and a function from settings to numbers, words, panels and a table. */
const chapters = { parameters: ofParameters, surface: ofSurface, glance: ofGlance, correlation: ofCorrelation, patterns: ofPatterns,
  hiding: ofHiding, origin: ofOrigin };

function ofParameters(part, batches, names) {
  return {
    controls: [
      levels("sigma", "Noise level σ", part, () => batches),
      levels("n", "Noisy copies n", part, (settings) => alike(batches, settings, "sigma")),
      estimator(names),
    ],
    show(settings) {
      const chosen = alike(batches, settings, "sigma", "n");
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
        head: ["sigma", "n", "estimator", "network", "image", "W"],
        rows: ofEach.flatMap((w, k) => w.map((v, image) => [settings.sigma, settings.n, settings.estimator, chosen[k].network, image, v])),
      };
    },
  };
}

function ofSurface(part, batches, names) {
  const triggers = [...["active", "inactive"].map((kind) => [kind, `${kind} (trigger ${part[kind]})`]), ["none", "none"]];
  const networks = [["all", "all"], ...ascending(batches.map((b) => b.network)).map((k) => [k, `network ${k + 1}`])];
  return {
    controls: [
      select("trigger", "Trigger", () => triggers),
      select("network", "Networks", () => networks),
      levels("sigma", "Noise level σ", part, () => batches),
      estimator(names),
    ],
    show(settings) {
      const chosen = alike(batches, settings, "sigma", ...(settings.network === "all" ? [] : ["network"]));
      const of = (kind) => chosen.filter((b) => b.kind === kind).map((b) => b.counts.map(estimators[settings.estimator]));
      const clean = of("clean"), with_ = settings.trigger === "none" ? null : of(settings.trigger);
      const boxes = [["clean", clean], ...(with_ ? [[settings.trigger, with_]] : [])];
      const change = with_?.flatMap((w, k) => w.map((v, image) => v - clean[k][image]));
      const share = (test) => number((100 * change.filter(test).length) / change.length, 0);
      const reach = reachOf(boxes.flatMap(([, w]) => w.flat()));
      const far = Math.max(0.05, ...(change ?? []).map(Math.abs));
      const plots = (width) => frame(width, { title: "W of images", x: { ...reach, label: "W (nats)" }, y: { from: 0, to: 1 },
        describe: boxes.map(([kind, w]) => `${kind}: mean ${mean(w.flat()).toFixed(3)}`).join("; ") }, (px, py, { left }) =>
        boxes.flatMap(([kind, w], k) => {
          const middle = py(with_ ? 0.72 - 0.48 * k : 0.5);
          return [s("text", { x: left, y: middle - 20 }, kind === "clean" ? "clean" : `${kind} trigger`),
            boxPlot(w.flat(), w.map(mean), px, middle, kind)];
        }));
      const middle = change && mean(change);
      const changes = change && bars(change, { from: -far, to: far, bins: 41, title: "differences, image by image",
        label: "W with the trigger minus W without", describe: `Paired differences: mean ${middle.toFixed(3)}` }, (px, py, { bottom, top }) => [
        line("zero", px(0), px(0), bottom, top),
        line("mean", px(middle), px(middle), bottom, top),
      ]);
      return {
        numbers: [
          ["mean, clean", number(mean(clean.flat()))],
          ...(with_ ? [
            ["mean, with trigger", number(mean(with_.flat()))],
            ["mean difference", number(middle)],
            ["smoother with it", share((d) => d < 0), "%"],
            ["wobblier with it", share((d) => d > 0), "%"],
          ] : []),
        ],
        words: with_
          ? "Line: median; diamond: mean; dashes below a box: means of the single networks. Differences are those of one image with the trigger "
            + "and without, under the same noise; the red line is their mean."
          : "With a trigger chosen, each image is compared with itself.",
        panels: changes ? [plots, changes] : [plots],
        head: ["sigma", "estimator", "network", "image", ...boxes.map(([kind]) => `W ${kind}`)],
        rows: clean.flatMap((w, k) => w.map((_, image) => [settings.sigma, settings.estimator,
          settings.network === "all" ? k : settings.network, image, ...boxes.map(([, of]) => of[k][image])])),
      };
    },
  };
}

/** The main result: mean W with and without the trigger against the noise level, one of which a slider chooses. */
function ofGlance(part) {
  const { series } = part;
  const kinds = [["clean", "without the trigger"], ["active", "with the trigger"]], coin = Math.log(2);
  return {
    controls: [levels("sigma", "Noise level σ (black is 0, white is 1)", part, () => series)],
    show(settings) {
      const k = series.findIndex((one) => one.sigma === settings.sigma), row = series[k];
      const effect = row.high < 0 ? "smoother: noise changes its prediction less"
        : row.low > 0 ? "rougher: noise changes its prediction more" : "neither clearly smoother nor clearly rougher";
      const names = series.map((one) => short(one.sigma).replace(/^0\./, "."));
      const x = { from: -0.3, to: series.length - 0.7, label: "noise level σ", names };
      const y = { from: 0, to: 1.12 * Math.max(coin, ...series.flatMap((one) => [one.clean, one.active])), label: "W, averaged" };
      const describe = `At noise level ${row.sigma}: ${kinds.map(([kind, name]) => `W ${row[kind].toFixed(3)} ${name}`).join(", ")}`;
      return {
        numbers: kinds.map(([kind, name]) => [`W ${name}`, number(row[kind], 2)]),
        words: `At this noise level the trigger makes the network ${effect}. W is 0 when noise never changes the prediction.`,
        panels: [(width) => frame(width, { x, y, describe, height: 240 }, (px, py, { left, right, bottom, top }) => [
          line("zero", left, right, py(coin), py(coin)),
          s("text", { class: "soft", x: left + 4, y: py(coin) - 5 }, "a coin toss between two classes"),
          line("axis", px(k), px(k), bottom, top),
          ...kinds.flatMap(([kind, name]) => {
            const last = series.length - 1, above = series[last][kind] >= Math.max(...kinds.map(([other]) => series[last][other]));
            return [
              curve(kind, series.map((one, place) => [px(place), py(one[kind])])),
              s("circle", { class: `dot ${kind}`, cx: px(k), cy: py(row[kind]), r: 6 }),
              s("text", { class: `name ${kind}`, x: right, y: py(series[last][kind]) + (above ? -10 : 22), "text-anchor": "end" },
                kind === "clean" ? "without" : name), // the whole name would run into the curve
            ];
          }),
        ])],
        head: ["sigma", "mean W clean", "mean W with trigger", "difference low", "difference high"],
        rows: series.map((one) => [one.sigma, one.clean, one.active, one.low, one.high]),
      };
    },
  };
}

function ofCorrelation(part) {
  const { pairs, means, below } = part;
  return {
    controls: [
      levels("sigma", "Noise level σ", part, () => means),
      levels("n", "Noisy copies n", part, (settings) => alike(means, settings, "sigma")),
      select("below", "Pairs left out", () => below.map((least) => [least, least ? `success below ${least}` : "none"]), () => below[1]),
    ],
    show(settings) {
      const [{ W: w }] = alike(means, settings, "sigma", "n");
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
        panels: [(width) => scatter(all, width)],
        head: ["sigma", "n", "network", "trigger", "class", "success", "mean W", "kept"],
        rows: all.map((pair) => [settings.sigma, settings.n, ...pair.row, pair.kept]),
      };
    },
  };
}

/** Success against W; a point says what it is when the pointer or the arrow keys come to it. */
function scatter(pairs, width) {
  const detail = h("p", { class: "detail", role: "status" }, "Point at a pair, or move among them with the arrow keys.");
  const triggers = ascending(pairs.map((pair) => pair.trigger));
  const inOrder = [...pairs].sort((p, q) => p.W - q.W), id = `pair-${Math.random().toString(36).slice(2)}`;
  const x = { from: 0, to: Math.max(...pairs.map((pair) => pair.W)) * 1.04 || 1, label: "mean of W with the trigger (nats)" };
  const svg = frame(width, { x, y: { from: -0.03, to: 1.03, label: "success" } }, (px, py, { left }) => [
    s("g", { class: "legend", "aria-hidden": "true" }, ...triggers.flatMap((trigger, k) => [
      mark(k, left + 8 + 82 * k, 9), s("text", { x: left + 18 + 82 * k, y: 13 }, `trigger ${trigger}`)])),
    s("g", { class: "points", role: "listbox", tabindex: 0, "aria-label": "Pairs, from small to large W", "data-lm-suppress-shortcuts": "true",
      onkeydown: move, onfocus: () => show(at < 0 ? 0 : at), onpointerover: point, onclick: point },
    ...inOrder.map((pair, k) => mark(triggers.indexOf(pair.trigger), px(pair.W), py(pair.success), {
      role: "option", id: `${id}-${k}`, "aria-selected": "false", "aria-label": told(pair), "data-pair": k, kept: pair.kept }))),
  ]);
  const list = svg.querySelector(".points");
  let at = -1;

  function told(pair) {
    return `${pair.name}: success ${(100 * pair.success).toFixed(1)}%, mean W ${pair.W.toFixed(3)}${pair.kept ? "" : ", left out"}`;
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
function mark(kind, x, y, { kept = true, ...attributes } = {}) {
  const all = { ...attributes, class: `mark kind-${kind}${kept ? "" : " hollow"}` };
  return kind ? s("rect", { ...all, x: x - 4.5, y: y - 4.5, width: 9, height: 9 }) : s("circle", { ...all, cx: x, cy: y, r: 5 });
}

function ofPatterns(part, batches) {
  /** What a batch is to be found as. */
  const kinds = (b) => (b.carried === "own" ? ["own", `trigger ${b.own}`, ...(part.working.includes(b.own) ? ["working"] : [])] : [b.carried]);
  const finds = (pattern) => (b) => kinds(b).includes(pattern);
  const crafted = (settings) => /^(universal|reversed)/.test(settings.pattern);
  const names = [
    ["own", "own triggers"],
    ["working", "own triggers that work"],
    ...ascending(part.triggers).map((t) => [`trigger ${t}`, `own trigger ${t}`]),
    ...ascending(part.bounds).map((b) => [`universal ${b}`, `universal perturbations, bound ${b}/255`]),
    ["reversed", "patches of Neural Cleanse"],
  ].filter(([pattern]) => batches.some(finds(pattern)));
  const points = (settings) => part.points[crafted(settings) ? 1 : 0];
  const sizes = (settings) => ascending([...part.batches.filter((size) => size < points(settings)), points(settings)]);
  const forms = [["paper", "the paper's, without outliers"], ["median", "around the median, without outliers"],
    ["calibrated", "calibrated, with all points"], ["unsigned", "the paper's, no direction"]];
  const w = new Map(); // of batches, once
  const wOf = (batch) => (w.has(batch) || w.set(batch, batch.counts.map(plugIn)), w.get(batch));

  /** Scores of the batches against the clean one of their network, cut into batches of one size. */
  function scores(chosen, settings) {
    const { form } = settings, all = form === "calibrated", center = all || form === "median" ? "median" : "mean";
    return chosen.flatMap((batch) => {
      const clean = wOf(alike(batches, { ...batch, carried: "clean" }, "carried", "network", "sigma")[0]);
      const tested = wOf(batch), found = [];
      for (let start = 0; start + settings.size <= points(settings); start += settings.size) {
        const score = levene(clean.slice(start, start + settings.size), tested.slice(start, start + settings.size), center, all);
        found.push({ batch, score: form === "unsigned" ? Math.abs(score) : score });
      }
      return found;
    });
  }

  return {
    controls: [
      select("pattern", "To be found", () => names),
      levels("sigma", "Noise level σ", part, (settings) => batches.filter(finds(settings.pattern))),
      range("size", "Points in a batch", sizes, points),
      select("form", "Levene's test", () => forms),
    ],
    show(settings) {
      const here = alike(batches, settings, "sigma"), positive = here.filter(finds(settings.pattern));
      const networks = new Set(positive.map((b) => b.network));
      const negative = here.filter((b) => crafted(settings)
        ? b.carried === "nothing" && networks.has(b.network)
        : (b.carried === "nothing" || b.carried === "unseen") && (b.own === null || finds(settings.pattern)({ ...b, carried: "own" })));
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
            line("zero", px(0), px(1), py(0), py(1)),
            curve("", corners.map(([x, y]) => [px(x), py(y)])),
          ]);
        }],
        head: ["sigma", "points", "test", "to be found", "carried", "network", "score"],
        rows: [[true, found], [false, others]].flatMap(([is, some]) => some.map(({ batch, score }) =>
          [settings.sigma, settings.size, settings.form, is, batch.carried, batch.network, score])),
      };
    },
  };
}

function ofHiding(part) {
  const { means: all } = part, attacks = unique(all.map((m) => m.attack)).map((name) => [name, name.replace("-", ", trigger ")]);

  /** Mean W of each network, without (circles) and with the trigger (squares), at the places of a setting; lines: their means. */
  function curves(rows, name, title, label) {
    const places = ascending(rows.map((m) => m[name])), kinds = ["without", "with"];
    const means = (kind) => places.map((v) => mean(rows.filter((m) => m[name] === v).map((m) => m[kind])));
    const most = Math.max(0.05, ...rows.flatMap((m) => [m.without, m.with]));
    const describe = kinds.map((kind) => `W ${kind} the trigger: ${means(kind).map((v) => v.toFixed(3)).join(", ")}`).join("; ");
    return (width) => frame(width, { title, describe, x: { from: -0.5, to: places.length - 0.5, label, names: places.map(inFull) },
      y: { from: 0, to: 1.05 * most, label: "mean of W (nats)" } }, (px, py) => kinds.flatMap((kind, k) => [
      curve(`kind-${k}`, means(kind).map((v, at) => [px(at), py(v)])),
      ...rows.map((m) => mark(k, px(places.indexOf(m[name]) + 0.2 * k - 0.1), py(m[kind]))),
    ]));
  }

  return {
    controls: [
      select("attack", "Attack", () => attacks),
      levels("covers", "Covers", part, (settings) => alike(all, settings, "attack")),
      levels("sigma", "Noise level σ", part, () => all),
    ],
    show(settings) {
      const own = alike(all, settings, "attack"), level = alike(own, settings, "sigma"), group = alike(own, settings, "covers");
      const here = alike(group, settings, "sigma"), of = (name) => mean(here.map((m) => m[name]));
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
        head: ["attack", "covers", "sigma", "network", "success", "W without", "W with"],
        rows: own.map((m) => [m.attack, m.covers, m.sigma, m.network, m.success, m.without, m.with]),
      };
    },
  };
}

function ofOrigin(part) {
  const { sides, greys, cells } = part;
  return {
    controls: [
      range("poisons", "Poisoned images", () => part.poisons),
      range("sigma", "Noise level σ", () => part.sigmas, () => part.sigma),
    ],
    show(settings) {
      const at = alike(cells, settings, "poisons", "sigma");
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
        words: "Change: mean W with the square minus mean W without; violet is smoother, orange is rougher. Side in pixels, grey from black (0) to white (1).",
        panels: [map("success", (c) => c.success, 1), map("change of W", (c) => c.W - c.clean, far)],
        head: ["side", "grey", "poisons", "sigma", "success", "W clean", "W"],
        rows: at.map((c) => [c.side, c.grey, c.poisons, c.sigma, c.success, c.clean, c.W]),
      };
    },
  };
}
