// The ledger: a search and filters over its cards. They live in the address, so that a link opens the same view. Without a script all cards show.
const RANK = ["reproduced", "in part", "not reproduced", "too little evidence", "setting not met", "not yet run"];
const KINDS = { paper: "the paper's claims", tuned: "claims that our settings were chosen for", ours: "our own questions", arithmetic: "the paper's own numbers" };
const SETS = { "fashion-mnist": "Fashion-MNIST", cifar10: "CIFAR-10" };

document.addEventListener("DOMContentLoaded", () => {
  const ledger = document.querySelector(".ledger");
  if (!ledger) return;
  const cards = [...ledger.querySelectorAll(".claim")], asked = new URLSearchParams(location.search);
  const text = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
  const values = { verdict: RANK, kind: Object.keys(KINDS), sets: [], chapter: [] };
  for (const card of cards) {
    for (const name of ["sets", "chapter"]) {
      for (const value of card.dataset[name].split(" ")) if (value && !values[name].includes(value)) values[name].push(value);
    }
  }
  const words = (name, value) => ({ kind: KINDS, sets: SETS })[name]?.[value] ?? value;
  const has = (card, name, value) => !value || card.dataset[name].split(name === "sets" ? " " : "\n").includes(value);
  const made = (tag, attributes, ...children) => {
    const element = Object.assign(document.createElement(tag), attributes);
    element.append(...children);
    return element;
  };

  const search = made("input", { type: "search", name: "text", value: asked.get("text") ?? "", placeholder: "e.g. STRIP" });
  const menus = { verdict: "Verdict", sets: "Data set", chapter: "Chapter", kind: "Kind" };
  const inputs = { text: search };
  for (const name of Object.keys(menus)) inputs[name] = made("select", { name });
  const form = made("form", { className: "ledger-filters" }, made("label", {}, "Search", search),
    ...Object.entries(menus).map(([name, title]) => made("label", {}, title, inputs[name])));
  form.setAttribute("role", "search");
  const status = made("p", { className: "ledger-count" });
  status.setAttribute("role", "status");
  ledger.prepend(form, status);

  const chosen = Object.fromEntries(Object.keys(menus).map((name) => [name, asked.get(name) ?? (name === "kind" && asked.has("verdict") ? "paper" : "")]));
  const fits = (card, but) => text.get(card).includes(search.value.toLowerCase())
    && Object.keys(menus).every((name) => name === but || has(card, name, chosen[name]));

  function update() {
    for (const name of Object.keys(menus)) {
      const others = cards.filter((card) => fits(card, name));
      inputs[name].replaceChildren(...["", ...values[name]].map((value) =>
        made("option", { value, selected: value === chosen[name] }, `${value ? words(name, value) : "all"} (${others.filter((card) => has(card, name, value)).length})`)));
    }
    let count = 0;
    for (const card of cards) count += !(card.hidden = !fits(card));
    status.textContent = `${count} of ${cards.length} claims`;
    const query = new URLSearchParams([["text", search.value], ...Object.entries(chosen)].filter(([, value]) => value)).toString();
    history.replaceState(null, "", `${location.pathname}${query && `?${query}`}${location.hash}`);
  }

  form.addEventListener("input", ({ target }) => {
    if (target !== search) chosen[target.name] = target.value;
    update();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
});
