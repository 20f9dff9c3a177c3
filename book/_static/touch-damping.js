// A ranking between its two ends: 60 gradients from leverage to gradient norm, as damping grows.
touch.open("damping", (picture, { eigenvalues, coordinates, damping, range }) => {
  const { element, set, number, show } = touch;
  const n = coordinates.length;
  const SHOWN = [1, 5]; // the eigendirections of the plane
  const squares = coordinates.map((row) => row.map((value) => value * value));
  const scores = (of) => squares.map((row) => row.reduce((sum, square, j) => sum + square * of(eigenvalues[j]), 0));
  const places = (values) => {
    const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]);
    const found = [];
    order.forEach((i, place) => (found[i] = place));
    return found;
  };
  // Spearman's, of rankings without ties.
  const agreement = (one, other) => 1 - (6 * one.reduce((sum, place, i) => sum + (place - other[i]) ** 2, 0)) / (n * (n * n - 1));
  const leverage = places(scores((e) => 1 / e));
  const norm = places(scores(() => 1));
  const by = leverage.map((place, i) => norm[i] - place);
  let chosen = by.indexOf(Math.max(...by));

  const slider = element("input", { type: "range", id: "damping-slider", min: range[0], max: range[1], step: 0.05, value: Math.log10(damping) });
  const which = element("input", { type: "range", id: "damping-which", min: 1, max: n, step: 1, value: leverage[chosen] + 1 });
  const [lambda, dimension, withLeverage, withNorm, own, score] = ["lambda", "dimension", "with-leverage", "with-norm", "rank", "score"].map((name) => element("data", { class: `touch-${name}` }));
  const firsts = element("span");
  const control = (words, input) => element("p", { class: "touch-control" }, element("label", { for: input.id }, words), input);
  const row = (words, cell) => element("tr", {}, element("th", { scope: "row" }, words), element("td", {}, cell));
  const table = element(
    "table",
    { class: "touch-numbers" },
    element("tbody", {}, row("damping λ", lambda), row("effective dimension", dimension), row("rank correlation with leverage", withLeverage), row("rank correlation with gradient norm", withNorm)),
  );
  const says = element("p", { class: "touch-says", role: "status" }, "The marked example is number ", firsts, " by leverage. At this damping its score is ", score, " and its rank ", own, ".");
  const ranks = element("svg", { role: "img", "aria-label": "Ranks by leverage, by the score and by gradient norm, joined by a line per example" });
  const plane = element("svg", { role: "img", "aria-label": "Gradients as arrows in the plane of two eigendirections, and the ellipse of equal score" });
  const words = element("g", { class: "touch-axes", "aria-hidden": "true" });
  const paths = coordinates.map(() => element("path", { class: "touch-path" }));
  const dots = coordinates.map(() => element("circle", { r: 1.8, class: "touch-dot" }));
  const arrows = coordinates.map(() => element("line", { class: "touch-arrow" }));
  const ellipse = element("ellipse", { class: "touch-ellipse" });
  const legend = element("g", { class: "touch-axes", "aria-hidden": "true" });
  ranks.append(words, ...paths, ...dots);
  plane.append(...arrows, ellipse, legend);
  const pictures = element("div", { class: "touch-beside" }, ranks, plane);
  picture.append(control("damping", slider), control("marked example", which), table, pictures, says);
  let size = null;

  const reads = (value) => (value >= 100 || value < 0.01 ? value.toExponential(1).replace("e+", "e").replace("-", "−") : number(value));

  function update() {
    const value = 10 ** Number(slider.value);
    const found = scores((e) => 1 / (e + value));
    const rank = places(found);
    const effective = eigenvalues.reduce((sum, e) => sum + e / (e + value), 0);
    show(lambda, value, reads(value));
    show(dimension, effective);
    show(withLeverage, agreement(rank, leverage));
    show(withNorm, agreement(rank, norm));
    show(score, found[chosen], reads(found[chosen]));
    show(own, rank[chosen] + 1, `${rank[chosen] + 1} of ${n}`);
    firsts.textContent = leverage[chosen] + 1;
    set(slider, { "aria-valuetext": `λ = ${reads(value)}, effective dimension ${number(effective)}, the marked example has rank ${rank[chosen] + 1}` });
    set(which, { "aria-valuetext": `number ${leverage[chosen] + 1} by leverage, rank ${rank[chosen] + 1} by the score` });
    if (size) place(value, rank);
  }

  function place(value, rank) {
    const { left, right, y, middle, radius, long } = size;
    const now = left + 12 + ((Number(slider.value) - range[0]) / (range[1] - range[0])) * (right - left - 24);
    coordinates.forEach((row, i) => {
      const marked = i === chosen;
      set(paths[i], { d: `M${left} ${y(leverage[i])}L${now} ${y(rank[i])}L${right} ${y(norm[i])}` });
      set(dots[i], { cx: now, cy: y(rank[i]) });
      set(arrows[i], { x1: middle, y1: middle, x2: middle + (row[SHOWN[0]] / long) * radius, y2: middle - (row[SHOWN[1]] / long) * radius });
      for (const one of [paths[i], dots[i], arrows[i]]) one.classList.toggle("touch-chosen", marked);
    });
    for (const one of [paths, dots, arrows]) one[chosen].parentNode.insertBefore(one[chosen], one === arrows ? ellipse : one === paths ? dots[0] : null);
    // Gradients on the ellipse have the same score: its half-axes are as the roots of e + λ.
    const [across, up] = SHOWN.map((j) => Math.sqrt(eigenvalues[j] + value));
    set(ellipse, { cx: middle, cy: middle, rx: 0.6 * radius, ry: (0.6 * radius * up) / across });
  }

  touch.fit(picture, () => {
    const width = ranks.parentNode.clientWidth;
    const wide = width > 560, across = wide ? width - 262 : width, side = wide ? 240 : Math.min(width, 260), height = wide ? 360 : 300;
    const left = 8, right = across - 8, top = 34, bottom = height - 8;
    const long = Math.max(...coordinates.flatMap((row) => SHOWN.map((j) => Math.abs(row[j]))));
    size = { left, right, y: (rank) => top + (rank / (n - 1)) * (bottom - top), middle: side / 2, radius: Math.max(side / 2 - 22, 0), long };
    set(ranks, { width: across, height });
    set(plane, { width: side, height: side });
    words.replaceChildren(
      element("text", { x: 0, y: 14 }, "by leverage"),
      element("text", { x: across / 2, y: 14, "text-anchor": "middle" }, "score at λ"),
      element("text", { x: across, y: 14, "text-anchor": "end" }, "by gradient norm"),
    );
    legend.replaceChildren(
      element("text", { x: side / 2, y: side - 4, "text-anchor": "middle" }, `eigendirection ${SHOWN[0] + 1}`),
      element("text", { transform: `translate(11 ${side / 2}) rotate(-90)`, "text-anchor": "middle" }, `eigendirection ${SHOWN[1] + 1}`),
    );
    update();
  });
  slider.addEventListener("input", update);
  which.addEventListener("input", () => {
    chosen = leverage.indexOf(Number(which.value) - 1);
    update();
  });
  update();
});
