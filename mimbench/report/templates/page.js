"use strict";
// Sorting and filtering. Without this script the tables are complete, best first.
(() => {
  const most = {{ most_rows }}; // rows of a table that are shown before somebody asks for all
  const tables = [...document.querySelectorAll("table.board")];
  const all = [...document.querySelectorAll("button.all")];

  const isResult = (row) => row.dataset.name !== undefined; // and no heading of a group

  function key(row, column) {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
  }

  function sort(table, head) {
    const column = Number(head.dataset.column);
    const numeric = head.classList.contains("value") || head.classList.contains("number");
    const first = numeric ? "descending" : "ascending";
    const other = numeric ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    for (const th of table.querySelectorAll("th[aria-sort]")) th.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter(isResult).map((row) => [numeric ? key(row, column) : row.cells[column].textContent, row]);
      rows.sort(([a], [b]) => {
        if (!numeric) return sign * a.localeCompare(b);
        if (a === null || b === null) return (a === null) - (b === null); // holes last, both ways
        return sign * (a - b);
      });
      body.append(...rows.map(([, row]) => row));
    }
    if (table.classList.contains("long")) filter();
  }

  for (const table of tables) {
    for (const head of table.querySelectorAll("th[data-column]")) {
      head.firstElementChild.addEventListener("click", () => sort(table, head));
    }
  }

  const form = document.getElementById("filters");
  const name = document.getElementById("filter-name");
  const uses = document.getElementById("filter-uses");
  const criteria = [...form.querySelectorAll("[data-criterion]")];
  const references = document.getElementById("filter-references");
  const older = document.getElementById("filter-older");
  const shown = document.getElementById("shown");

  function filter() {
    const wanted = name.value.trim().toLowerCase();
    const asked = criteria.filter((one) => one.value !== "").map((one) => [one.dataset.criterion, one.value]);
    let count = 0;
    let total = 0;
    for (const table of tables) {
      const room = table.classList.contains("long") ? most : Infinity;
      let own = 0;
      let heading = null; // of the group; it goes with its last row
      for (const body of table.tBodies) {
        heading = body.querySelector(".subheading") ?? heading;
        if (body.contains(heading)) heading.hidden = true;
        const old = body.classList.contains("older") && older !== null && !older.checked;
        for (const row of [...body.rows].filter(isResult)) {
          const unwanted =
            old ||
            (!references.checked && !row.classList.contains("method")) ||
            (uses.value !== "" && row.dataset.uses !== uses.value) ||
            !row.dataset.name.includes(wanted) ||
            asked.some(([criterion, value]) => !(row.dataset[criterion] ?? "").split("|").includes(value));
          total += 1;
          own += unwanted ? 0 : 1;
          const hidden = unwanted || own > room;
          if (row.hidden !== hidden) row.hidden = hidden;
          if (heading !== null && !hidden) heading.hidden = false;
        }
      }
      count += own;
      table.classList.add("counted");
      const button = all.find((one) => one.closest("section").contains(table));
      if (button !== undefined) {
        button.hidden = own <= room;
        button.textContent = `The first ${room} rows are shown. Show all ${own}`;
      }
    }
    shown.textContent = count === total ? `${total} rows` : `${count} of ${total} rows`;
  }

  for (const button of all) {
    button.addEventListener("click", () => {
      const table = button.closest("section").querySelector("table.board");
      table.classList.remove("long");
      filter();
      table.parentElement.focus();
    });
  }
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter(); // the browser may have kept what was typed before a reload
})();
