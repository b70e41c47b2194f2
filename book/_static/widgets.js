// Explorers in the static page, with no kernel: each gets the state that papermill saved, in place of the words for those without scripts.
// This is the host's side of anywidget's front-end modules, as far as modules that only read their state need it. Jupyter's own
// html-manager does the same for every widget there is, for a megabyte of scripts and its styles in all of the page.
(async () => {
  const saved = document.querySelector('script[type="application/vnd.jupyter.widget-state+json"]');
  if (!saved) return;
  const { state } = JSON.parse(saved.textContent);
  for (const place of document.querySelectorAll("[data-widget]")) {
    const { state: values, buffers = [] } = state[place.dataset.widget];
    for (const { path: [name], data } of buffers) {
      values[name] = new DataView(Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)).buffer);
    }
    const url = URL.createObjectURL(new Blob([values._esm], { type: "text/javascript" }));
    const { default: widget } = await import(url);
    URL.revokeObjectURL(url);
    const style = document.createElement("style"), el = document.createElement("div");
    style.textContent = values._css;
    await widget.render({ model: { get: (name) => values[name] }, el });
    place.replaceChildren(style, el); // last: where a browser is too old, the words stay
  }
})();
