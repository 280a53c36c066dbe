// The charts again, with values to hover and series to hide. Until one comes near the screen, and wherever
// drawing fails, the written drawing stays.

const MOST_LABELS = 40; // names beside the lines; of more, the one pointed at
const LABEL_GAP = 14, LABEL_WIDTH = 260, NARROW = 560; // pixels

const SYMBOLS = (DATA.shapes ?? []).map((outline) => ({
  draw(context, size) {
    const radius = Math.sqrt(size / Math.PI);
    outline.forEach(([x, y], i) => (i ? context.lineTo(x * radius, y * radius) : context.moveTo(x * radius, y * radius)));
    context.closePath();
  },
}));

const colourOf = (series) => `var(--series-${DATA.series[series].colour})`;
const written = (value) => (value === 0 ? "0" : Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 }));

function drawChart(holder, chart) {
  const lines = chart.lines.filter((line) => !hiddenSeries.has(line.series));
  if (!lines.length) return holder.replaceChildren(element("p", { class: "missing" }, "No case of this chart is shown."));
  const width = Math.max(300, holder.clientWidth);
  const labelled = lines.length <= MOST_LABELS && width >= NARROW;
  const points = lines.flatMap(({ series, hollow, points }) => points.map(([x, y]) => ({ x, y, series, hollow })));
  const quantity = ({ title, unit }, value) => `${title}: ${written(value)}${unit ? ` ${unit}` : ""}`;
  const told = ({ x, y, series, hollow }) =>
    [DATA.series[series].label, quantity(chart.x, x), quantity(chart.y, y), ...(hollow ? ["disturbed"] : [])].join("\n");
  const axis = ({ label, log }) => ({ label, type: log ? "log" : "linear", nice: true, tickFormat: log ? (v) => `${v}` : undefined });
  const marks = [Plot.gridX({ stroke: "var(--line)", strokeOpacity: 1 }), Plot.gridY({ stroke: "var(--line)", strokeOpacity: 1 })];
  const axisOf = (where, of, ticks) =>
    (where === "x" ? Plot.axisX : Plot.axisY)({ label: of.label, labelArrow: "none", ...(where === "x" ? { labelAnchor: "center" } : {}), ...(of.log ? { ticks, tickFormat: "~g" } : { ticks }) });
  marks.push(axisOf("x", chart.x, Math.max(3, Math.round(width / 130))), axisOf("y", chart.y, 6));
  if (chart.front.length > 1)
    marks.push(Plot.line(chart.front, { curve: "step-after", stroke: "var(--soft)", strokeDasharray: "3 3" }));
  for (const { series, hollow, faint, points, xInterval, yInterval } of lines) {
    const { dash, mark } = DATA.series[series];
    const className = `series series-${series}`;
    const colour = colourOf(series);
    const opacity = faint ? 0.35 : undefined;
    const [at] = points;
    if (yInterval) marks.push(Plot.line(yInterval.map((y) => [at[0], y]), { stroke: colour, strokeOpacity: 0.5, opacity, className }));
    if (xInterval) marks.push(Plot.line(xInterval.map((x) => [x, at[1]]), { stroke: colour, strokeOpacity: 0.5, opacity, className }));
    if (chart.joined && points.length > 1)
      marks.push(Plot.line(points, { stroke: colour, strokeWidth: 1.8, strokeDasharray: dash || undefined, className }));
    if (chart.marked || points.length === 1)
      marks.push(Plot.dot(points, {
        r: chart.joined ? 3.5 : 5.5, symbol: SYMBOLS[mark], stroke: colour, fill: hollow ? "none" : colour, opacity, className,
        ariaLabel: ([x, y]) => told({ x, y, series, hollow }).replaceAll("\n", ", "),
      }));
  }
  marks.push(Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: told, fill: "var(--raised)", stroke: "var(--soft)", fontSize: 13, lineWidth: 30 })));
  const height = Math.max(340, labelled ? 70 + LABEL_GAP * lines.length : 0);
  const svg = Plot.plot({
    width, height, marks, x: axis(chart.x), y: axis(chart.y), ariaLabel: chart.description,
    marginLeft: 56, marginBottom: 44, marginTop: 28, marginRight: labelled ? LABEL_WIDTH : 16,
    style: { background: "transparent", color: "currentColor", fontFamily: "inherit", fontSize: "12px", overflow: "visible" },
  });
  if (labelled) labelEnds(svg, lines, width - LABEL_WIDTH);
  svg.addEventListener("input", () => light(svg, svg.value?.series));
  holder.replaceChildren(svg, ...(labelled ? [] : [key(lines, chart)]));
  holder.classList.add("drawn");
}

function light(svg, series) {
  for (const mark of svg.querySelectorAll(".series"))
    mark.style.opacity = series === undefined || mark.classList.contains(`series-${series}`) ? "" : "0.18";
}

// Every name to the right of the axes, joined to its last point by a thin line.
function labelEnds(svg, lines, edge) {
  const [x, y] = [svg.scale("x"), svg.scale("y")];
  const ends = lines
    .map(({ series, points }) => ({ series, x: x.apply(points.at(-1)[0]), y: y.apply(points.at(-1)[1]) }))
    .sort((a, b) => a.y - b.y);
  const at = spreadOut(ends.map((end) => end.y), LABEL_GAP, 14, svg.height.baseVal.value - 30);
  const layer = d3.select(svg).append("g").attr("font-size", 12).attr("text-anchor", "start");
  ends.forEach((end, i) => {
    const one = layer.append("g").attr("class", `series series-${end.series}`);
    one.append("path").attr("d", `M${end.x + 5},${end.y}L${edge + 24},${at[i]}h6`).attr("fill", "none")
      .attr("stroke", colourOf(end.series)).attr("stroke-dasharray", "1 2");
    const { label, short } = DATA.series[end.series];
    one.append("text").attr("x", edge + 34).attr("y", at[i]).attr("dy", "0.35em").attr("fill", "currentColor")
      .text(short ?? label).append("title").text(label);
  });
}

// Heights in order, moved apart to the gap, as little as a pass down and one back need.
function spreadOut(heights, gap, top, bottom) {
  const at = [...heights];
  at.forEach((_, i) => { at[i] = Math.max(at[i], i ? at[i - 1] + gap : top); });
  for (let i = at.length - 1; i >= 0; i -= 1) at[i] = Math.min(at[i], i + 1 < at.length ? at[i + 1] - gap : bottom);
  return at;
}

function key(lines, { joined }) {
  if (lines.length > MOST_LABELS) return element("p", { class: "soft" }, `${lines.length} cases: point at one to name it.`);
  return element("ul", { class: "key" }, ...lines.map(({ series }) => element("li", {}, swatch(series, joined), DATA.series[series].label)));
}

(function drawCharts() {
  if (!globalThis.Plot) return;
  const drawn = new Set();
  const redraw = (holder) => drawChart(holder, DATA.charts[holder.dataset.chart]);
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries)
      if (isIntersecting && !drawn.has(target)) {
        drawn.add(target);
        resized.observe(target);
      }
  }, { rootMargin: "600px" });
  const widths = new Map();
  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries)
      if (widths.get(target) !== target.clientWidth) {
        widths.set(target, target.clientWidth);
        redraw(target);
      }
  });
  for (const holder of document.querySelectorAll("[data-chart]")) near.observe(holder);
  followers.push(() => drawn.forEach(redraw));
})();
