// One sample of every model, enlarged side by side: the same noise and class in each.

(function browseSamples() {
  const browser = document.getElementById("browser");
  const images = [...document.querySelectorAll("img[data-columns]")];
  if (!browser || images.length < 1) return;
  const geometry = images.map(({ dataset }) => ({
    columns: Number(dataset.columns), rows: Number(dataset.rows), gap: Number(dataset.gap),
  }));
  const limit = (which) => Math.max(...geometry.map((one) => one[which]));
  const chosen = { row: 0, column: 0 };
  const tiles = images.map((image) => {
    const canvas = element("canvas", { role: "img" });
    return { image, canvas, figure: element("figure", {}, canvas, element("figcaption", {}, swatch(Number(image.dataset.series)), image.dataset.label)) };
  });

  function stepper(name, which) {
    const value = element("input", { type: "number", min: 1, max: limit(which === "row" ? "rows" : "columns"), value: 1 });
    value.addEventListener("input", () => choose({ [which]: Math.min(value.max, Math.max(1, Number(value.value) || 1)) - 1 }));
    return { value, label: element("label", {}, `${name} `, value, ` of ${value.max}`) };
  }
  const row = stepper(browser.dataset.row, "row");
  const column = stepper("Image", "column");

  function choose(change) {
    Object.assign(chosen, change);
    row.value.value = chosen.row + 1;
    column.value.value = chosen.column + 1;
    draw();
    say(`${browser.dataset.row} ${chosen.row + 1}, image ${chosen.column + 1}`);
  }

  function draw() {
    tiles.forEach(({ image, canvas, figure }, i) => {
      if (!image.naturalWidth) return;
      const { columns, rows, gap } = geometry[i];
      figure.hidden = hiddenSeries.has(Number(image.dataset.series)) || chosen.row >= rows || chosen.column >= columns;
      image.closest("figure").hidden = hiddenSeries.has(Number(image.dataset.series));
      if (figure.hidden) return;
      const [width, height] = [(image.naturalWidth - gap) / columns, (image.naturalHeight - gap) / rows];
      [canvas.width, canvas.height] = [width - gap, height - gap];
      canvas.setAttribute("aria-label", `${image.dataset.label}: ${browser.dataset.row} ${chosen.row + 1}, image ${chosen.column + 1}`);
      canvas.getContext("2d").drawImage(image, chosen.column * width + gap, chosen.row * height + gap,
        canvas.width, canvas.height, 0, 0, canvas.width, canvas.height);
    });
  }

  images.forEach((image, i) => {
    image.addEventListener("click", (event) => {
      const { columns, rows } = geometry[i];
      const at = (offset, length, count) => Math.min(count - 1, Math.max(0, Math.floor((offset / length) * count)));
      choose({ row: at(event.offsetY, image.clientHeight, rows), column: at(event.offsetX, image.clientWidth, columns) });
      browser.scrollIntoView({ block: "nearest" });
    });
  });
  browser.append(
    element("p", { class: "tools" }, row.label, column.label, element("span", { class: "soft" }, "or click an image in a grid below")),
    element("div", { class: "tiles" }, ...tiles.map(({ figure }) => figure)),
  );
  browser.hidden = false;
  followers.push(draw);
  const near = new IntersectionObserver(([{ isIntersecting }]) => {
    if (!isIntersecting) return;
    near.disconnect();
    for (const image of images) image.loading = "eager";
    Promise.all(images.map((image) => image.decode().catch(() => null))).then(draw);
  }, { rootMargin: "600px" });
  near.observe(browser);
})();

document.documentElement.dataset.explored = "yes";
