// Images as points: the score of each against what could rank them in its place.
touch.open("explorer", (picture, { columns, classes, labels, rivals, linear, border, methods }) => {
  const { element, set, show } = touch;
  const n = labels.length;
  const AROUND = 100; // images that count as having the same percentile
  const SHOWN = 12;
  const sheet = picture.closest("figure").querySelector("figcaption a.download").href;
  touch.sheet(picture, sheet, columns);

  // Little-endian float32 in base64, as the chapter's cell packs them.
  function unpacked(text) {
    const view = new DataView(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
    return Array.from({ length: view.byteLength / 4 }, (_, i) => view.getFloat32(4 * i, true));
  }
  // The order of its images, ascending, and the place of each in it.
  function ranked(values) {
    const order = values.map((_, i) => i).sort((a, b) => values[a] - values[b] || a - b);
    const place = [];
    order.forEach((i, k) => (place[i] = k));
    return { values, order, place };
  }
  const borders = ranked(unpacked(border));
  for (const one of Object.values(methods)) {
    for (const [name, text] of Object.entries(one.values)) one[name] = ranked(unpacked(text));
    one.border = borders;
  }

  const percentile = (place) => (100 * (place + 0.5)) / n;
  const percent = (place) => percentile(place).toFixed(1);
  const reads = (value) => (value === 0 ? "0" : Math.abs(value) >= 1e-3 ? value.toLocaleString("en", { maximumSignificantDigits: 3 }) : value.toExponential(1).replace("-", "−"));
  // The `size` neighbours in an order around a place, cut at neither end.
  function around(order, place, size) {
    const from = Math.min(Math.max(place - Math.floor(size / 2), 0), n - size);
    return order.slice(from, from + size);
  }

  function thumbnail(i, label) {
    const made = element("span", { class: "touch-thumbnail", ...(label ? { role: "img", "aria-label": label } : {}) });
    made.style.setProperty("--row", Math.floor(i / columns));
    made.style.setProperty("--column", i % columns);
    return made;
  }

  function choice(legend, name, options) {
    const field = element("fieldset", { class: "touch-options" }, element("legend", {}, legend));
    for (const [value, words] of Object.entries(options)) {
      const input = element("input", { type: "radio", name: `explorer-${name}`, value });
      input.checked = value === state[name];
      input.addEventListener("change", () => {
        state[name] = value;
        update();
      });
      field.append(element("label", {}, input, words));
    }
    return field;
  }

  const state = { method: Object.keys(methods)[0], rival: Object.keys(rivals)[0] };
  const slider = element("input", { type: "range", id: "explorer-percentile", min: 1, max: n, step: 1, value: n });
  const cells = Object.fromEntries(["score", "score-percentile", "rival", "rival-percentile", "shared", "correlation"].map((name) => [name, element("data", { class: `touch-${name}` })]));
  const rivalName = element("th", { scope: "row" });
  const table = element(
    "table",
    { class: "touch-numbers" },
    element("thead", {}, element("tr", {}, element("td"), element("th", { scope: "col" }, "value"), element("th", { scope: "col" }, "percentile"))),
    element(
      "tbody",
      {},
      element("tr", {}, element("th", { scope: "row" }, "score −I"), element("td", {}, cells.score), element("td", {}, cells["score-percentile"])),
      element("tr", {}, rivalName, element("td", {}, cells.rival), element("td", {}, cells["rival-percentile"])),
    ),
  );
  const chosen = element("div", { class: "touch-image" });
  const says = element("p", { class: "touch-says", role: "status" });
  const svg = element("svg", { role: "img", class: "touch-points" });
  const axes = element("g", { class: "touch-axes", "aria-hidden": "true" });
  const [all, byRival, byScore] = ["touch-all", "touch-by-rival", "touch-by-score"].map((name) => element("path", { class: name }));
  const mark = element("circle", { class: "touch-mark", r: 7 });
  svg.append(axes, all, byRival, byScore, mark);
  const hint = element("div", { class: "touch-hint", "aria-hidden": "true", hidden: "" });
  const plane = element("div", { class: "touch-plane" }, svg, hint);
  const galleries = element("div", { class: "touch-lists" });
  picture.append(
    choice("Encoder", "method", Object.fromEntries(Object.entries(methods).map(([name, one]) => [name, one.label]))),
    choice("Score against", "rival", rivals),
    plane,
    element("p", { class: "touch-control" }, element("label", { for: slider.id }, "score percentile"), slider),
    element("div", { class: "touch-beside" }, chosen, table),
    says,
    galleries,
  );
  let points = null;
  let draw = null;

  function update() {
    const { score, [state.rival]: rival, correlations, label } = methods[state.method];
    const words = rivals[state.rival];
    const place = Number(slider.value) - 1;
    const i = score.order[place];
    const name = classes[labels[i]];
    const bands = [around(score.order, place, AROUND), around(rival.order, place, AROUND)];
    const both = new Set(bands[1]);
    const shared = bands[0].filter((j) => both.has(j)).length;
    chosen.replaceChildren(thumbnail(i, name));
    rivalName.textContent = words;
    show(cells.score, score.values[i], reads(score.values[i]));
    show(cells.rival, rival.values[i], reads(rival.values[i]));
    show(cells["score-percentile"], percentile(place), percent(place));
    show(cells["rival-percentile"], percentile(rival.place[i]), percent(rival.place[i]));
    show(cells.shared, shared, shared);
    show(cells.correlation, correlations[state.rival]);
    says.replaceChildren(
      `Chosen: ${name}, percentile ${percent(place)} by score and ${percent(rival.place[i])} by ${words}. Of the ${AROUND} images around percentile ${percent(place)} of the score, `,
      cells.shared,
      ` are also among the ${AROUND} around this percentile of the ${words}; chance would give ${Math.round((AROUND * AROUND) / n)}. Rank correlation of the two, ${label}: `,
      cells.correlation,
      ".",
    );
    set(slider, { "aria-valuetext": `percentile ${percent(place)} by score: ${name}, percentile ${percent(rival.place[i])} by ${words}` });
    set(svg, { "aria-label": `${n.toLocaleString("en")} images as points: across their ${words}, up their score. Rank correlation ${touch.number(correlations[state.rival])}.` });
    galleries.replaceChildren(
      ...[["score", score, "touch-by-score"], [words, rival, "touch-by-rival"]].map(([by, one, colour]) => {
        const title = `Percentile ${percent(place)} by ${by}`;
        const items = around(one.order, place, SHOWN).map((j) => element("li", {}, thumbnail(j, classes[labels[j]])));
        return element("section", { "aria-label": title }, element("p", { class: colour }, title), element("ol", { class: "touch-gallery" }, ...items));
      }),
    );
    if (draw) draw(score.values, rival.values, words, bands, i);
  }

  // From a value to its place between two pixels; logarithmic where the value can be.
  function scale(values, name, from, to) {
    const log = !linear.includes(name);
    const of = log ? Math.log : (value) => value;
    const ends = [Math.min(...values), Math.max(...values)].map(of);
    const margin = 0.02 * (ends[1] - ends[0]);
    const [low, high] = [ends[0] - margin, ends[1] + margin];
    const at = (value) => from + ((of(value) - low) / (high - low)) * (to - from);
    const steps = [];
    if (log) for (let power = Math.floor(low / Math.LN10); power <= high / Math.LN10; power++) for (const digit of [1, 3]) steps.push(digit * 10 ** power);
    else for (let k = 0; k <= 10; k++) steps.push(k / 10);
    return { at, ticks: steps.filter((tick) => of(tick) >= low && of(tick) <= high) };
  }

  touch.fit(plane, (width) => {
    const height = Math.max(280, Math.min(420, 0.65 * width));
    const [left, right, top, bottom] = [58, width - 12, 10, height - 40];
    set(svg, { width, height });
    draw = (scores, others, words, bands, i) => {
      const x = scale(others, state.rival, left, right), y = scale(scores, "score", bottom, top);
      points = scores.map((score, j) => [x.at(others[j]), y.at(score)]);
      axes.replaceChildren(
        element("path", { d: `M${left} ${top}V${bottom}H${right}` }),
        ...x.ticks.map((tick) => element("text", { x: x.at(tick), y: bottom + 16, "text-anchor": "middle" }, reads(tick))),
        ...y.ticks.map((tick) => element("text", { x: left - 6, y: y.at(tick) + 4, "text-anchor": "end" }, reads(tick))),
        element("text", { x: (left + right) / 2, y: height - 3, "text-anchor": "middle" }, words),
        element("text", { transform: `translate(11 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "score −I"),
      );
      // Round caps make a dot of every line without length.
      const dots = (which) => which.map((j) => `M${points[j].map((pixel) => pixel.toFixed(1)).join(" ")}h0`).join("");
      set(all, { d: dots(labels.map((_, j) => j)) });
      set(byScore, { d: dots(bands[0]) });
      set(byRival, { d: dots(bands[1]) });
      set(mark, { cx: points[i][0], cy: points[i][1] });
    };
    update();
  });

  // The point nearest to the pointer, if there is one within a finger's width.
  function nearest(event) {
    const box = svg.getBoundingClientRect();
    const away = points.map(([x, y]) => Math.hypot(x - event.clientX + box.left, y - event.clientY + box.top));
    const least = Math.min(...away);
    return least < 24 ? away.indexOf(least) : -1;
  }

  svg.addEventListener("click", (event) => {
    const i = nearest(event);
    if (i < 0) return;
    slider.value = methods[state.method].score.place[i] + 1;
    update();
  });
  svg.addEventListener("pointermove", (event) => {
    const i = event.pointerType === "touch" ? -1 : nearest(event);
    hint.hidden = i < 0;
    if (i < 0) return;
    const { score } = methods[state.method];
    hint.replaceChildren(thumbnail(i), `${classes[labels[i]]}, percentile ${percent(score.place[i])}`);
    const [x, y] = points[i];
    // On the side with room.
    hint.style.left = `${x < plane.clientWidth / 2 ? x + 14 : x - 14 - hint.offsetWidth}px`;
    hint.style.top = `${Math.max(0, y - 30)}px`;
  });
  svg.addEventListener("pointerleave", () => (hint.hidden = true));
  slider.addEventListener("input", update);
  update();
});
