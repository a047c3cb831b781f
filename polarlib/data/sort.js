// Sort a table by the column whose heading is pressed; numbers by value, then texts, then blanks.
"use strict";
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const table = heading.closest("table");
    const column = heading.cellIndex;
    const rising = heading.getAttribute("aria-sort") !== "ascending";
    const key = (row) => {
      const cell = row.cells[column];
      const text = cell.dataset.sort ?? cell.textContent.trim();
      return { text, number: text === "" || text === "–" ? NaN : Number(text) };
    };
    const rank = (entry) => (Number.isFinite(entry.number) ? 0 : entry.text.length > 1 ? 1 : 2);
    const compare = (a, b) => {
      if (rank(a) !== rank(b)) return rank(a) - rank(b);
      const order = rank(a) === 0 ? a.number - b.number
        : a.text.localeCompare(b.text, "en", { numeric: true });
      return rising ? order : -order;
    };
    const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
    rows.sort((a, b) => compare(a[0], b[0]));
    table.tBodies[0].append(...rows.map((entry) => entry[1]));
    for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
  });
}
