// The live lab: choose an image, paint on it, stamp a trigger, and see W of two networks. What is heavy happens in worker.mjs.

const ORIGINAL = -1; // what a pixel that is not painted on holds
const BRUSHES = { white: 255, black: 0, original: ORIGINAL };
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

const radio = (group, value, checked, ...label) => {
  const input = make("input", { type: "radio", name: group, value });
  input.checked = checked;
  return make("label", {}, input, ...label);
};

const group = (legend, name, ...members) => make("fieldset", { class: name }, make("legend", {}, legend), ...members);

const slider = (name, text, { min, max, step, value }) => {
  const input = make("input", { type: "range", name, min, max, step, value });
  const shown = make("span", { class: "lab-value", "aria-hidden": "true" }, value); // the slider itself says its value
  input.addEventListener("input", () => (shown.textContent = input.value));
  return make("label", { class: "lab-slider" }, make("span", {}, text), input, shown);
};

const picture = (side, levels, attributes = {}) => {
  const canvas = make("canvas", { width: side, height: side, ...attributes });
  draw(canvas, levels);
  return canvas;
};

const draw = (canvas, levels) => {
  const image = new ImageData(canvas.width, canvas.height);
  levels.forEach((level, i) => image.data.set([level, level, level, 255], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
};

// Plug-in entropy of class counts, in nats (Eq. 3).
const wobbliness = (counts) => {
  const n = counts.reduce((a, b) => a + b, 0);
  return Math.abs(counts.reduce((w, c) => (c ? w - (c / n) * Math.log(c / n) : w), 0)); // 0, never -0
};

class WobblinessLab extends HTMLElement {
  connectedCallback() {
    if (this.dataset.state) return;
    this.dataset.state = "closed";
    this.status = make("p", { role: "status", class: "lab-status" });
    if (typeof WebAssembly === "undefined" || typeof Worker === "undefined") {
      this.fail("This browser has no WebAssembly or no workers, which the lab computes with. Try a current browser.");
      return;
    }
    const button = make("button", { type: "button", class: "lab-open" }, "Open the lab");
    button.addEventListener("click", () => this.open());
    this.replaceChildren(button, make("p", { class: "lab-small" }, "It loads 19 MB, once, from where this page is. Your pixels stay here."));
  }

  async open() {
    this.dataset.state = "loading";
    this.status.textContent = "Loading the networks …";
    this.replaceChildren(this.status);
    try {
      const response = await fetch(new URL("lab.json", import.meta.url));
      if (!response.ok) throw new Error(`lab.json: ${response.status} ${response.statusText}`);
      this.about = await response.json();
      await this.start();
    } catch (error) {
      this.fail(`The lab could not be loaded: ${error.message}`);
      return;
    }
    this.build();
    this.choose(this.first);
  }

  start() {
    const networks = Object.entries(this.about.networks).map(([name, { file, sha256 }]) => ({ name, file, sha256 }));
    this.worker = new Worker(new URL("worker.mjs", import.meta.url), { type: "module" });
    return new Promise((resolve, reject) => {
      const failed = (why) => (this.dataset.state === "loading" ? reject(new Error(why)) : this.fail(`The computation failed: ${why}`));
      this.worker.onerror = (event) => failed(event.message || "the browser does not run its worker");
      this.worker.onmessage = ({ data }) => {
        if (data.type === "counts") this.show(data);
        else if (data.type === "ready") resolve((this.checked = data.checked));
        else failed(data.message);
      };
      this.worker.postMessage({ type: "load", networks, width: this.about.images.shape[3] });
    });
  }

  fail(message) {
    this.dataset.state = "failed";
    this.status.textContent = message;
    this.replaceChildren(this.status);
  }

  build() {
    const { classes, images, triggers, networks } = this.about;
    const [count, , side] = images.shape;
    const bytes = Uint8Array.from(atob(images.pixels), (c) => c.charCodeAt(0));
    this.side = side;
    this.images = Array.from({ length: count }, (_, i) => bytes.subarray(i * side * side, (i + 1) * side * side));
    this.paint = new Int16Array(side * side);
    this.cursor = [side >> 1, side >> 1];
    this.seed = 0;
    this.request = 0;
    this.first = Number(this.dataset.image);

    const thumbnails = this.images.map((levels, i) =>
      radio("lab-image", i, i === this.first, picture(side, levels, { "aria-hidden": "true" }), make("span", {}, classes[images.labels[i]])),
    );
    const trained = networks.backdoored.trigger;
    const stamps = Object.entries(triggers).map(([number, rows]) => {
      const name = Number(number) === trained ? `${number}, trained` : number;
      return radio("lab-trigger", number, false, picture(10, this.stamped(Array.from({ length: 100 }, (_, k) => ((k + Math.floor(k / 10)) % 2 ? 70 : 40)), 10, rows), { "aria-hidden": "true" }), make("span", {}, name));
    });
    const brushes = Object.keys(BRUSHES).map((name, i) => radio("lab-brush", name, i === 0, make("span", {}, name === "original" ? "erase" : name)));
    this.canvas = picture(side, this.images[0], {
      class: "lab-canvas", tabindex: 0, role: "application", "aria-describedby": "lab-keys",
      "aria-label": `Painting area of ${side} by ${side} pixels`,
    });
    this.mark = make("div", { class: "lab-cursor" });
    this.example = picture(side, this.images[0], { role: "img", "aria-label": "One of the noisy copies, cut off below black and above white" });
    const clear = make("button", { type: "button", name: "clear" }, "Remove all paint");
    const again = make("button", { type: "button", name: "again" }, "Draw other noise");
    this.panels = new Map(Object.entries(networks).map(([name, network]) => [name, this.panel(name, network)]));

    this.explained = make("p", { class: "lab-explain" });
    this.replaceChildren(
      make("div", { class: "lab-bench" },
        make("div", {},
          make("div", { class: "lab-easel" }, this.canvas, this.mark),
          make("p", { class: "lab-small", id: "lab-keys" }, "Paint here; by keyboard: arrows move, space paints."),
          group("Trigger", "lab-choices lab-triggers", radio("lab-trigger", "", true, make("span", {}, "none")), ...stamps),
          slider("sigma", "Noise σ", { min: 0, max: 1, step: 0.01, value: this.dataset.sigma ?? 0.1 }),
        ),
        ...[...this.panels.values()].map((panel) => panel.section),
      ),
      this.explained,
      this.status,
      make("div", { class: "lab-controls" },
        slider("n", "Noisy copies n", { min: 10, max: 1000, step: 10, value: 250 }),
        again,
        group("Image", "lab-images", ...thumbnails),
        group("Brush", "lab-choices", ...brushes),
        slider("width", "Brush width", { min: 1, max: 5, step: 1, value: 2 }),
        clear,
        make("div", { class: "lab-noisy" }, this.example, make("p", { class: "lab-small" }, "One noisy copy")),
      ),
      make("p", { class: "lab-small" }, this.exactness()),
    );

    for (const input of this.querySelectorAll("[name=lab-image]")) input.addEventListener("change", () => this.choose(Number(input.value)));
    for (const input of this.querySelectorAll("[name=lab-trigger], [name=sigma], [name=n]")) input.addEventListener("input", () => this.measure());
    clear.addEventListener("click", () => { this.paint.fill(ORIGINAL); this.measure(); });
    again.addEventListener("click", () => { this.seed++; this.measure(); });
    this.listenToBrush();
  }

  panel(name, { trigger, target }) {
    const { classes } = this.about;
    const number = make("strong", {});
    const gauge = make("div", { role: "meter", class: "lab-gauge", "aria-valuemin": 0, "aria-valuemax": Math.log(classes.length).toFixed(3), "aria-label": `W of the ${name} network` }, make("span", {}));
    const says = make("p", { class: "lab-says" });
    const bars = classes.map((label) => make("li", {}, make("span", { class: "lab-class" }, label), make("span", { class: "lab-bar" }, make("span", {})), make("span", { class: "lab-count" })));
    const section = make("section", { "data-network": name, "data-done": "false", "aria-label": `${name} network` },
      make("h2", {}, `${name[0].toUpperCase()}${name.slice(1)} network`),
      make("p", { class: "lab-small" }, target === null ? "Trained on clean images." : `Trigger ${trigger} makes it say ${classes[target]}.`),
      make("p", { class: "lab-w" }, "W = ", number),
      gauge,
      make("p", { class: "lab-scale" }, make("span", {}, "0"), make("span", {}, `at most ln ${classes.length} = ${Math.log(classes.length).toFixed(3)}`)),
      says,
      make("ul", { "aria-label": "How many noisy copies are predicted as each class" }, ...bars),
    );
    return { section, number, gauge, says, bars };
  }

  // What the numbers mean, in words.
  explain(counts) {
    const { classes, networks } = this.about;
    const trigger = this.querySelector("[name=lab-trigger]:checked").value;
    const said = Object.keys(networks).map((name) => {
      const total = counts[name].reduce((a, b) => a + b, 0), most = Math.max(...counts[name]), w = wobbliness(counts[name]);
      const steady = w < 0.1 ? "noise hardly changes its answer" : w < 0.5 ? "noise sometimes changes its answer" : "noise often changes its answer";
      return `The ${name} network predicts ${Math.round((100 * most) / total)}% of the noisy copies as ${classes[counts[name].indexOf(most)]}: ${steady}.`;
    });
    const { target, trigger: trained } = networks.backdoored, top = counts.backdoored.indexOf(Math.max(...counts.backdoored));
    if (trigger && this.about.images.labels[this.image] === target) said.push(`This image is of class ${classes[target]} anyway, which the backdoor asks for: choose another image.`);
    else if (trigger) said.push(top === target ? "The trigger decides what the backdoored network says, whatever else the image shows." : "Here the trigger does not decide what the backdoored network says.");
    else said.push(`Now put trigger ${trained} on the image, and compare.`);
    return said.join(" ");
  }

  exactness() {
    const say = ([name, { key, agreement: a }]) =>
      `${name} (record ${key.slice(0, 6)}): ${(100 * a.labels).toFixed(2)}% of ${a.copies.toLocaleString("en")} labels, W within ${a.w_max.toFixed(3)} (on average ${a.w_mean.toFixed(4)})`;
    const unchecked = this.checked ? "" : "The networks were not compared with their digests: browsers do that only for https or localhost. ";
    return `${unchecked}The weights are rounded to 8 bits. Agreement with the unrounded networks under the same noise: ${Object.entries(this.about.networks).map(say).join("; ")}.`;
  }

  listenToBrush() {
    let last = null;
    const cell = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((share) => Math.min(this.side - 1, Math.max(0, Math.floor(share * this.side))));
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.canvas.setPointerCapture(event.pointerId);
      this.line(cell(event), (last = cell(event)));
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (last) this.line(last, (last = cell(event)));
    });
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => (last = null));
    this.canvas.addEventListener("keydown", (event) => {
      if (event.key in KEYS) this.cursor = this.cursor.map((at, axis) => Math.min(this.side - 1, Math.max(0, at + KEYS[event.key][axis])));
      else if (event.key === " ") this.line(this.cursor, this.cursor);
      else return;
      event.preventDefault();
      this.point();
    });
    this.querySelector("[name=width]").addEventListener("input", () => this.point());
    this.point();
  }

  // The square of the brush around a cell: first column, first row, width; it stays within the image.
  square([column, row]) {
    const width = Number(this.querySelector("[name=width]").value);
    const first = (at) => Math.min(this.side - width, Math.max(0, at - (width >> 1)));
    return [first(column), first(row), width];
  }

  point() {
    const percent = this.square(this.cursor).map((cells) => `${(100 * cells) / this.side}%`);
    [this.mark.style.left, this.mark.style.top, this.mark.style.width] = percent;
  }

  line(from, to) {
    this.cursor = to;
    const level = BRUSHES[this.querySelector("[name=lab-brush]:checked").value];
    const steps = Math.max(1, Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]));
    for (let step = 0; step <= steps; step++) {
      const [left, top, width] = this.square([0, 1].map((axis) => Math.round(from[axis] + ((to[axis] - from[axis]) * step) / steps)));
      for (let row = top; row < top + width; row++) this.paint.fill(level, row * this.side + left, row * this.side + left + width);
    }
    this.point();
    this.measure();
  }

  choose(index) {
    this.image = index;
    this.paint.fill(ORIGINAL);
    this.measure();
  }

  // The levels with a trigger in the lower right corner.
  stamped(levels, side, rows) {
    rows.forEach((row, i) => row.forEach((level, j) => {
      if (level !== null) levels[(side - rows.length + i) * side + side - row.length + j] = level;
    }));
    return levels;
  }

  levels() {
    const levels = Array.from(this.images[this.image], (level, i) => (this.paint[i] === ORIGINAL ? level : this.paint[i]));
    const trigger = this.querySelector("[name=lab-trigger]:checked").value;
    return this.stamped(levels, this.side, this.about.triggers[trigger] ?? []);
  }

  measure() {
    const levels = this.levels();
    const [sigma, n] = ["sigma", "n"].map((name) => Number(this.querySelector(`[name=${name}]`).value));
    draw(this.canvas, levels);
    this.dataset.state = "measuring";
    for (const { section } of this.panels.values()) section.dataset.done = "false";
    this.asked = { sigma, n };
    const pixels = Float32Array.from(levels, (level) => level / 255);
    this.worker.postMessage({ type: "measure", id: ++this.request, pixels, sigma, n, seed: this.seed, classes: this.about.classes.length });
  }

  show({ id, counts, labels, samples, example }) {
    if (id !== this.request) return; // of a request that was overtaken
    const { sigma, n } = this.asked;
    const { classes } = this.about;
    if (example) draw(this.example, Array.from(example, (x) => Math.min(255, Math.max(0, Math.round(255 * x)))));
    const done = samples === n;
    for (const [name, panel] of this.panels) {
      const w = wobbliness(counts[name]);
      panel.number.textContent = w.toFixed(3);
      panel.gauge.setAttribute("aria-valuenow", w.toFixed(3));
      panel.gauge.firstChild.style.width = `${(100 * w) / Math.log(classes.length)}%`;
      panel.says.textContent = `Without noise: ${classes[labels[name]]}.`;
      panel.bars.forEach((bar, k) => {
        bar.children[1].firstChild.style.width = `${(100 * counts[name][k]) / n}%`;
        bar.children[2].textContent = counts[name][k];
      });
      Object.assign(panel.section.dataset, { counts: counts[name].join(","), w, label: labels[name], done });
    }
    if (!done) return;
    Object.assign(this.dataset, { state: "done", sigma, n, seed: this.seed, finished: Number(this.dataset.finished ?? 0) + 1 });
    const words = [...this.panels].map(([name, panel]) => `${name} W = ${panel.number.textContent}`);
    this.explained.textContent = this.explain(counts);
    this.status.textContent = `σ = ${sigma}, n = ${n}: ${words.join(", ")}.`;
  }
}

customElements.define("wobbliness-lab", WobblinessLab);
