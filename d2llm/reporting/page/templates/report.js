"use strict";
// Sorts every table by its column heads and filters the part to browse. The page is whole without it: nothing is made here but buttons.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // ---------------------------------------------------------------------------------------------------------- sorting
  // The number a cell's first line begins with, if it begins with one; otherwise its text.
  const key = (cell) => {
    const nodes = cell ? [...cell.childNodes] : [];
    const end = nodes.findIndex((node) => node.nodeName === "BR");
    const text = nodes.slice(0, end < 0 ? nodes.length : end).map((node) => node.textContent).join("").trim();
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
    const wanted = [...new FormData(form)].filter(([name]) => !PAIR.includes(name));
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

  // Of examples two methods alone: first the rows on which these two stand furthest apart, within each table.
  const PAIR = ["one", "two"];
  const compareTwo = (form) => {
    const pair = PAIR.map((name) => form.elements[name].value);
    for (const id of form.dataset.rows.split(" ")) {
      const table = document.getElementById(id);
      table.classList.toggle("two", pair[0] !== "");
      for (const cell of all("[data-method]", table))
        cell.classList.toggle("aside", pair[0] !== "" && !pair.includes(cell.dataset.method));
      for (const line of all("[data-first]", table))
        line.classList.toggle("aside", pair[0] !== "" && !pair.some((name) => line.dataset.first.split(" ").includes(name)));
      const standing = (row, name) => key(row.querySelector(`[data-method="${name}"]`)).number ?? 0;
      const rows = [...table.tBodies[0].rows].map((row, place) => {
        row.dataset.place ??= place;
        return { row, place: Number(row.dataset.place), apart: pair[0] ? Math.abs(standing(row, pair[0]) - standing(row, pair[1])) : 0 };
      });
      rows.sort((a, b) => b.apart - a.apart || a.place - b.place);
      table.tBodies[0].append(...rows.map(({ row }) => row));
    }
  };

  const filterColumns = (form) => {
    const off = new Set(all("input:not(:checked)", form).map((box) => box.value));
    for (const cell of all("[data-method]", document.getElementById(form.dataset.columns)))
      cell.hidden = off.has(cell.dataset.method);
  };

  for (const form of all("form.filters")) {
    const pairs = "one" in form.elements;
    const apply = () => ("rows" in form.dataset ? filterRows(form) : filterColumns(form));
    // On a narrow screen two methods are compared at first.
    const begin = () => {
      if (pairs && matchMedia("(max-width: 40rem)").matches) form.elements.one.selectedIndex = 1;
      if (pairs) compareTwo(form);
      apply();
    };
    form.hidden = false;
    if (pairs)
      form.addEventListener("input", (event) => {
        if (PAIR.includes(event.target.name)) compareTwo(form);
      });
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(begin)); // once the fields have their values back
    begin();
  }
})();
