// The ledger's table: buttons that show one verdict alone, headings that sort: up, down, and back to the paper's order. Without a script it is a plain table.
const RANK = ["reproduced", "in part", "not reproduced", "too little evidence", "setting not met", "not yet run"];

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".ledger table")) {
    const body = table.tBodies[0], rows = [...body.rows];
    const headings = [...table.tHead.rows[0].cells];
    const at = headings.findIndex((heading) => heading.textContent.trim() === "Verdict");
    const verdictOf = (row) => row.cells[at].textContent.trim();

    const choices = document.createElement("div");
    choices.className = "ledger-choices";
    choices.setAttribute("role", "group");
    choices.setAttribute("aria-label", "Verdicts to show");
    const counts = new Map([["all", rows.length]]);
    for (const verdict of RANK) {
      const count = rows.filter((row) => verdictOf(row) === verdict).length;
      if (count) counts.set(verdict, count);
    }
    for (const [verdict, count] of counts) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `${verdict} (${count})`;
      button.setAttribute("aria-pressed", String(verdict === "all"));
      button.addEventListener("click", () => {
        for (const other of choices.children) other.setAttribute("aria-pressed", String(other === button));
        for (const row of rows) row.hidden = verdict !== "all" && verdictOf(row) !== verdict;
      });
      choices.append(button);
    }
    table.before(choices);

    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: null }[heading.getAttribute("aria-sort")];
        const order = next === undefined ? "ascending" : next;
        for (const other of headings) other.removeAttribute("aria-sort");
        if (order) heading.setAttribute("aria-sort", order);
        const value = (row) => column === at ? RANK.indexOf(verdictOf(row)) : row.cells[column].textContent.trim();
        const compare = (a, b) => column === at ? value(a) - value(b) : value(a).localeCompare(value(b), "en");
        const sign = order === "descending" ? -1 : 1;
        body.append(...(order ? [...rows].sort((a, b) => sign * compare(a, b)) : rows));
      });
    });
  }
});
