/* A column title sorts its table: numbers as numbers, empty cells last. */
const number = (text) => Number.parseFloat(text.replaceAll(",", "").replace("−", "-"));
const compare = (a, b) => {
  const [x, y] = [number(a), number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
};
for (const table of document.querySelectorAll("table")) {
  const titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, at) => title.querySelector("button").addEventListener("click", () => {
    const up = title.getAttribute("aria-sort") !== "ascending";
    titles.forEach((other) => other.removeAttribute("aria-sort"));
    title.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[at].dataset.value ?? row.cells[at].textContent.trim();
    const filled = (row) => value(row) !== "";
    const rows = [...table.tBodies[0].rows];
    const order = (a, b) => (up ? 1 : -1) * compare(value(a), value(b));
    table.tBodies[0].append(
      ...rows.filter(filled).sort(order), ...rows.filter((row) => !filled(row)));
  }));
}
