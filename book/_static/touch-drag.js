// Points of a least-squares line that can be moved: the fit with and without the chosen one.
touch.open("drag", (picture, { inputs, targets, names }) => {
  const { element, set, number, show } = touch;
  const start = targets.map((target, i) => [inputs[i], target]);
  const points = start.map((point) => [...point]);
  const movable = Object.keys(names).map(Number);
  const bounds = [[-4.5, 4.5], [-3, 3]];
  const STEP = 0.1;
  let chosen = movable[movable.length - 1];
  let scale = null;

  // The line through all points but `without`, and what leverages need.
  function fit(without = -1) {
    const kept = points.filter((_, i) => i !== without);
    const mean = (of) => kept.reduce((sum, point) => sum + of(point), 0) / kept.length;
    const x = mean((p) => p[0]), y = mean((p) => p[1]);
    const spread = kept.reduce((sum, p) => sum + (p[0] - x) ** 2, 0);
    const slope = kept.reduce((sum, p) => sum + (p[0] - x) * (p[1] - y), 0) / spread;
    return { x, spread, slope, intercept: y - slope * x };
  }

  const residual = (line, [x, y]) => y - line.intercept - line.slope * x;

  function measures(line, i) {
    const n = points.length, p = 2;
    const h = 1 / n + (points[i][0] - line.x) ** 2 / line.spread;
    const r = residual(line, points[i]);
    const variance = points.reduce((sum, q) => sum + residual(line, q) ** 2, 0) / (n - p);
    return { h, r, score: n * r * r * h, cook: (r * r * h) / (p * variance * (1 - h) ** 2) };
  }

  const svg = element("svg", { role: "group", "aria-label": "Points and the line fitted to them" });
  const cloud = element("g", { class: "touch-faint" });
  const axes = element("g", { class: "touch-axes", "aria-hidden": "true" });
  const all = element("line", { class: "touch-line" });
  const rest = element("line", { class: "touch-line touch-other" });
  const gap = element("line", { class: "touch-gap" });
  svg.append(axes, cloud, gap, rest, all);
  const handles = new Map(movable.map((i) => [i, handle(i)]));
  svg.append(...handles.values());

  function handle(i) {
    const made = element(
      "g",
      { class: "touch-handle", role: "slider", tabindex: "0", "aria-label": `Point ${names[i]}`, "aria-valuemin": bounds[1][0], "aria-valuemax": bounds[1][1] },
      element("circle", { class: "touch-area", r: 22 }),
      element("rect", { x: -7, y: -7, width: 14, height: 14 }),
      element("text", { y: -12, "text-anchor": "middle" }, names[i]),
    );
    made.addEventListener("focus", () => choose(i));
    made.addEventListener("pointerdown", (event) => {
      made.setPointerCapture(event.pointerId);
      made.focus();
      event.preventDefault();
    });
    made.addEventListener("pointermove", (event) => {
      if (!made.hasPointerCapture(event.pointerId)) return;
      const box = svg.getBoundingClientRect();
      move(i, scale.input(event.clientX - box.left), scale.target(event.clientY - box.top));
    });
    made.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 5 * STEP : STEP;
      const by = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] }[event.key];
      if (!by) return;
      event.preventDefault();
      move(i, points[i][0] + by[0], points[i][1] + by[1]);
    });
    return made;
  }

  function choose(i) {
    chosen = i;
    update();
  }

  function move(i, ...to) {
    points[i] = to.map((value, axis) => {
      const [low, high] = bounds[axis];
      return Math.min(high, Math.max(low, Number(value.toFixed(2))));
    });
    choose(i);
  }

  const rows = new Map(
    movable.map((i) => {
      const cells = Object.fromEntries(["h", "r", "score", "cook"].map((key) => [key, element("data", { class: `touch-${key}` })]));
      const row = element("tr", { "data-point": names[i] }, element("th", { scope: "row" }, names[i]), ...Object.values(cells).map((cell) => element("td", {}, cell)));
      return [i, { row, cells }];
    }),
  );
  const head = ["leverage", "residual", "self-influence", "Cook’s distance"].map((word) => element("th", { scope: "col" }, word));
  const table = element("table", { class: "touch-numbers" }, element("thead", {}, element("tr", {}, element("td"), ...head)), element("tbody", {}, ...[...rows.values()].map((one) => one.row)));
  const slope = element("data", { class: "touch-slope" });
  const slopeWithout = element("data", { class: "touch-slope-without" });
  const who = element("span");
  const says = element("p", { class: "touch-says", role: "status" }, "Slope of the fit: ", slope, "; without ", who, ": ", slopeWithout, ".");
  const reset = element("button", { type: "button" }, "Put the points back");
  reset.addEventListener("click", () => {
    for (const i of movable) points[i] = [...start[i]];
    update();
  });
  picture.append(svg, table, says, reset);

  function update() {
    const line = fit(), without = fit(chosen);
    for (const [i, { row, cells }] of rows) {
      const found = measures(line, i);
      row.classList.toggle("touch-chosen", i === chosen);
      show(cells.h, found.h);
      show(cells.r, found.r, (found.r > 0 ? "+" : "") + number(found.r));
      show(cells.score, found.score);
      show(cells.cook, found.cook);
      const [x, y] = points[i];
      set(handles.get(i), {
        "aria-valuenow": y,
        "aria-valuetext": `input ${number(x)}, target ${number(y)}, leverage ${number(found.h)}, residual ${number(found.r)}, Cook’s distance ${number(found.cook)}`,
      });
      handles.get(i).classList.toggle("touch-chosen", i === chosen);
    }
    show(slope, line.slope, number(line.slope, 3));
    show(slopeWithout, without.slope, number(without.slope, 3));
    who.textContent = names[chosen];
    if (scale) place(line, without);
  }

  function place(line, without) {
    const { x, y } = scale;
    const ends = (one, found) => {
      const [a, b] = bounds[0];
      set(one, { x1: x(a), y1: y(found.intercept + found.slope * a), x2: x(b), y2: y(found.intercept + found.slope * b) });
    };
    ends(all, line);
    ends(rest, without);
    const [input, target] = points[chosen];
    set(gap, { x1: x(input), x2: x(input), y1: y(target), y2: y(line.intercept + line.slope * input) });
    for (const [i, one] of handles) {
      set(one, { transform: `translate(${x(points[i][0])} ${y(points[i][1])})` });
      // The letter stands on the side away from the line, clear of the bar.
      set(one.querySelector("text"), { y: residual(line, points[i]) < 0 ? 21 : -12 });
    }
  }

  touch.fit(picture, (width) => {
    const height = Math.max(260, Math.min(400, 0.6 * width));
    const edges = [[34, width - 28], [height - 36, 14]];
    const [[left, right], [bottom, top]] = edges;
    const [across, up] = bounds;
    scale = {
      x: (value) => left + ((value - across[0]) / (across[1] - across[0])) * (right - left),
      y: (value) => bottom + ((value - up[0]) / (up[1] - up[0])) * (top - bottom),
      input: (pixel) => across[0] + ((pixel - left) / (right - left)) * (across[1] - across[0]),
      target: (pixel) => up[0] + ((pixel - bottom) / (top - bottom)) * (up[1] - up[0]),
    };
    const { x, y } = scale;
    set(svg, { width, height });
    axes.replaceChildren(
      element("path", { d: `M${left} ${top}V${bottom}H${right}` }),
      ...[-4, -2, 0, 2, 4].map((tick) => element("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, number(tick, 0))),
      ...[-2, 0, 2].map((tick) => element("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick, 0))),
      element("text", { x: (left + right) / 2, y: height - 3, "text-anchor": "middle" }, "input"),
      element("text", { transform: `translate(11 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "target"),
    );
    cloud.replaceChildren(...points.flatMap((point, i) => (handles.has(i) ? [] : [element("circle", { cx: x(point[0]), cy: y(point[1]), r: 4 })])));
    update();
  });
  update();
});
