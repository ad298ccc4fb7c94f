"use strict";
// Sorts every table by its column heads and filters the part to browse. The page is whole without it: nothing is made here but buttons.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // ---------------------------------------------------------------------------------------------------------- sorting
  // The number a cell begins with, if it begins with one; otherwise its text.
  const key = (cell) => {
    const text = cell ? cell.textContent.trim() : "";
    const found = text.replace(/−/g, "-").replace(/(\d),(?=\d{3})/g, "$1").match(/^(?:< )?([-+]?\d+(?:\.\d+)?)(?![\d.])/);
    return { text, number: found ? Number(found[1]) : null };
  };

  // Empty cells last, whichever way; numbers before words.
  const compare = (a, b, down) => {
    if (!a.text || !b.text) return (a.text ? 0 : 1) - (b.text ? 0 : 1);
    const order =
      a.number !== null && b.number !== null
        ? a.number - b.number
        : (a.number === null) - (b.number === null) || a.text.localeCompare(b.text);
    return down ? -order : order;
  };

  // The heads that stand right above a column, each with the column's number: heads may span rows and columns.
  const heads = (table) => {
    const rows = table.tHead ? [...table.tHead.rows] : [];
    const taken = rows.map(() => []);
    const found = [];
    rows.forEach((row, top) => {
      let column = 0;
      for (const cell of row.cells) {
        while (taken[top][column]) column += 1;
        for (let down = 0; down < cell.rowSpan && top + down < rows.length; down += 1)
          for (let right = 0; right < cell.colSpan; right += 1) taken[top + down][column + right] = true;
        if (top + cell.rowSpan >= rows.length && cell.colSpan === 1) found.push([cell, column]);
        column += cell.colSpan;
      }
    });
    return found;
  };

  // Rows move within their block only: reference rows stay apart.
  const sort = (table, column, down) => {
    for (const body of table.tBodies) {
      const rows = [...body.rows].map((row, place) => {
        row.dataset.place ??= place;
        return { row, place: Number(row.dataset.place), key: key(row.cells[column]) };
      });
      rows.sort((a, b) => (down === null ? 0 : compare(a.key, b.key, down)) || a.place - b.place);
      body.append(...rows.map(({ row }) => row));
    }
  };

  for (const table of all("table")) {
    if (![...table.tBodies].some((body) => body.rows.length > 1)) continue;
    const columns = heads(table);
    for (const [head, column] of columns) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        // Numbers: highest first, words: from A; then the other way; then as it was.
        const cells = [...table.tBodies].flatMap((body) => [...body.rows].map((row) => key(row.cells[column])));
        const first = cells.some((cell) => cell.number !== null) ? "descending" : "ascending";
        const second = first === "descending" ? "ascending" : "descending";
        const now = { [first]: second, [second]: null }[head.getAttribute("aria-sort")];
        const next = now === undefined ? first : now;
        for (const [other] of columns) other.removeAttribute("aria-sort");
        if (next) head.setAttribute("aria-sort", next);
        sort(table, column, next && next === "descending");
      });
    }
  }

  // -------------------------------------------------------------------------------------------------------- filtering
  const chosen = (row, name, value) => {
    if (!value) return true;
    if (name === "text") return row.cells[0].textContent.includes(value);
    if (name === "metric" && value === "*") return "headline" in row.dataset || row.dataset.phenomenon !== "all";
    if (name === "phenomenon" && value === "*") return row.dataset.phenomenon !== "all";
    return row.dataset[name] === value;
  };

  const filterRows = (form) => {
    const wanted = [...new FormData(form)];
    let shown = 0;
    let count = 0;
    for (const id of form.dataset.rows.split(" ")) {
      for (const row of all("tbody tr", document.getElementById(id))) {
        row.hidden = !wanted.every(([name, value]) => chosen(row, name, value));
        shown += !row.hidden;
        count += 1;
      }
    }
    form.querySelector("output").textContent = `${shown} of ${count} rows`;
  };

  const filterColumns = (form) => {
    const off = new Set(all("input:not(:checked)", form).map((box) => box.value));
    for (const cell of all("[data-method]", document.getElementById(form.dataset.columns)))
      cell.hidden = off.has(cell.dataset.method);
  };

  for (const form of all("form.filters")) {
    const apply = () => ("rows" in form.dataset ? filterRows(form) : filterColumns(form));
    form.hidden = false;
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(apply)); // once the fields have their values back
    apply();
  }
})();
