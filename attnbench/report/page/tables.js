// Tables as the page was written, sorted, filtered and narrowed in place: rows and cells are moved or hidden,
// none is made from text.

function enhanceTable(table) {
  const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const body = table.tBodies[0];
  const written = [...body.rows];
  const title = table.caption.textContent;
  const scroll = table.parentElement;
  const tools = element("div", { class: "tools" });
  const names = headings.map((heading) => heading.firstChild.textContent.trim());

  function filterRows() {
    const wanted = filter ? filter.value.toLowerCase() : "";
    let left = 0;
    for (const row of written) {
      const off = row.dataset.series !== undefined && hiddenSeries.has(Number(row.dataset.series));
      row.hidden = off || !row.textContent.toLowerCase().includes(wanted);
      if (!row.hidden) left += 1;
    }
    return left;
  }

  function sortBy(heading, column) {
    const now = heading.getAttribute("aria-sort");
    const first = heading.dataset.better === "higher" ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const next = now === first ? other : now === other ? null : first;
    for (const each of headings) each.removeAttribute("aria-sort");
    if (next) heading.setAttribute("aria-sort", next);
    const sign = next === "descending" ? -1 : 1;
    const rows = next === null ? written : [...written].sort((a, b) => order(a, b, column, sign));
    body.append(...rows);
    say(next === null ? `${title}: first order` : `${title} sorted by ${names[column]}, ${next}`);
  }

  headings.forEach((heading, column) => {
    // No button element: Chromium leaves those out of the headings that a printed table repeats on each page.
    const button = element("span", { role: "button", tabindex: 0, class: "sort", onclick: () => sortBy(heading, column) });
    button.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      sortBy(heading, column);
    });
    button.append(...heading.childNodes);
    heading.append(button);
  });

  let filter = null;
  if (written.length > 5) {
    filter = element("input", { type: "search", placeholder: "Filter rows", "aria-label": `Filter rows: ${title}` });
    filter.addEventListener("input", () => say(`${title}: ${filterRows()} rows`));
    tools.append(filter);
  }
  if (headings.length > 4) tools.append(columnChooser(table, headings, names, title));
  if (tools.childElementCount) scroll.parentElement.before(tools);
  followers.push(filterRows);
}

// Numbers by value, words by alphabet (2 before 10); what is missing comes last in both directions.
function order(a, b, column, sign) {
  const [first, second] = [a.cells[column], b.cells[column]];
  const [x, y] = [first.dataset.value, second.dataset.value];
  if (x !== undefined && y !== undefined) return sign * (Number(x) - Number(y));
  if (x !== undefined || y !== undefined) return x === undefined ? 1 : -1;
  return sign * first.textContent.localeCompare(second.textContent, "en", { numeric: true });
}

function columnChooser(table, headings, names, title) {
  const shown = headings.map(() => true);
  const bands = table.tHead.rows.length > 1 ? [...table.tHead.rows[0].cells] : [];
  const widths = bands.map((band) => band.colSpan);
  const rows = [...table.tBodies].flatMap((body) => [...body.rows]);
  function show(column, on) {
    shown[column] = on;
    for (const cell of [headings[column], ...rows.map((row) => row.cells[column])]) cell.hidden = !on;
    let from = 0;
    bands.forEach((band, i) => {
      const left = shown.slice(from, from + widths[i]).filter(Boolean).length;
      band.hidden = left === 0;
      if (left) band.colSpan = left;
      from += widths[i];
    });
    say(`${title}: column ${names[column]} ${on ? "shown" : "hidden"}`);
    watchScroll(table.parentElement);
  }
  const choices = names.slice(1).map((name, i) => {
    const box = element("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => show(i + 1, box.checked));
    return element("li", {}, element("label", {}, box, name));
  });
  return element("details", { class: "columns" },
    element("summary", {}, "Columns"), element("ul", { class: "choices" }, ...choices));
}

// A shadow at the edge behind which there is more.
function watchScroll(scroll) {
  scroll.parentElement.classList.toggle("more", scroll.scrollLeft + scroll.clientWidth < scroll.scrollWidth - 1);
}

for (const table of document.querySelectorAll("table.explored")) enhanceTable(table);
for (const scroll of document.querySelectorAll(".scroll")) {
  scroll.addEventListener("scroll", () => watchScroll(scroll), { passive: true });
  new ResizeObserver(() => watchScroll(scroll)).observe(scroll);
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("main > details")) details.open = true;
});
