// Which cases are shown: one choice for tables, charts and samples. Names become text, never markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const hiddenSeries = new Set();
const followers = []; // called whenever the choice changes

function say(text) {
  document.getElementById("said").textContent = text;
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && typeof value === "boolean") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function swatch(series, joined = true) {
  const { colour, mark, dash } = DATA.series[series];
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", joined ? "swatch line" : "swatch");
  svg.setAttribute("style", `color: var(--series-${colour})`);
  svg.setAttribute("viewBox", joined ? "0 0 34 12" : "11 0 12 12");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(svg.namespaceURI, "line");
  for (const [key, value] of Object.entries({ x1: 0, x2: 34, y1: 6, y2: 6, "stroke-dasharray": dash, pathLength: 60 }))
    line.setAttribute(key, value);
  const use = document.createElementNS(svg.namespaceURI, "use");
  for (const [key, value] of Object.entries({ href: `#mark-${mark}`, x: 12, y: 1, width: 10, height: 10 }))
    use.setAttribute(key, value);
  svg.append(...(joined ? [line, use] : [use]));
  return svg;
}

function showSeries(list, shown) {
  for (const series of list) shown ? hiddenSeries.delete(series) : hiddenSeries.add(series);
  for (const follow of followers) follow();
}

(function buildChooser() {
  const chooser = document.getElementById("chooser");
  if (DATA.choices.length < 2) return;
  const count = element("span");
  const boxes = DATA.choices.map(({ label, series }) => {
    const box = element("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => showSeries(series, box.checked));
    return { box, series, label, item: element("li", {}, element("label", {}, box, swatch(series[0]), label)) };
  });
  const find = element("input", { type: "search", placeholder: "Find a case", "aria-label": "Find a case" });
  const found = () => boxes.filter(({ item }) => !item.hidden).flatMap(({ series }) => series);
  find.addEventListener("input", () => {
    const wanted = find.value.toLowerCase();
    for (const { item, label } of boxes) item.hidden = !label.toLowerCase().includes(wanted);
  });
  const button = (text, shown) =>
    element("button", { type: "button", onclick: () => showSeries(found(), shown) }, text);
  followers.push(() => {
    for (const { box, series } of boxes) box.checked = series.some((one) => !hiddenSeries.has(one));
    count.textContent = `${boxes.filter(({ box }) => box.checked).length} of ${boxes.length}`;
    say(`${count.textContent} cases shown`);
  });
  count.textContent = `${boxes.length} of ${boxes.length}`;
  chooser.append(
    element("details", {},
      element("summary", {}, "Cases shown: ", count),
      element("div", { class: "tools" }, find, button("Show", true), button("Hide", false)),
      element("ul", { class: "choices" }, ...boxes.map(({ item }) => item))),
  );
  chooser.hidden = false;
})();
