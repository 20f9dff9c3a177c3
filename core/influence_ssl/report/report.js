"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const { columns, values } = read("rows");
  const subsets = read("subsets");
  const count = values[0].length;
  // As the style sheet has it: 2rem and a line.
  const ROW = 2 * parseFloat(getComputedStyle(document.documentElement).fontSize) + 1;
  const SPARE = 12;
  const TITLES = {
    rank: "Rank", name: "Image", score: "Score", standard_error: "Standard error",
    percentile: "Percentile", loss: "Loss", gradient_norm: "Gradient norm", nearest: "Nearest image",
    similarity: "Similarity", duplicate_group: "Group", map_x: "Map x", map_y: "Map y",
  };
  const title = (key) => TITLES[key] || key.replace(/^table: /, "");
  const at = Object.fromEntries(columns.map((column, c) => [column.key, c]));

  const $ = (id) => document.getElementById(id);
  const viewport = $("viewport");
  const [head, body] = [$("table").tHead, $("table").tBodies[0]];
  let sorted = { column: at.rank, sign: 1 };
  let shown = [];
  let first = -1;

  const headings = document.createElement("tr");
  headings.setAttribute("aria-rowindex", "1");
  const group = document.createElement("colgroup");
  const width = ({ key, kind }) => (["rank", "duplicate_group"].includes(key) ? 6 : kind === "number" ? 8.5 : key.startsWith("table: ") ? 9 : 16);
  columns.forEach((column, c) => {
    const cell = document.createElement("th");
    const button = document.createElement("button");
    cell.scope = "col";
    cell.className = column.kind;
    button.type = "button";
    button.textContent = title(column.key);
    button.addEventListener("click", () => {
      sorted = { column: c, sign: sorted.column === c ? -sorted.sign : 1 };
      refresh();
    });
    cell.append(button);
    headings.append(cell);
    const col = document.createElement("col");
    col.style.width = `${width(column)}rem`;
    group.append(col);
    if (column.kind === "number") $("column").add(new Option(title(column.key), c));
  });
  head.append(headings);
  $("table").prepend(group);
  $("table").style.width = `${columns.reduce((sum, column) => sum + width(column), 0)}rem`;

  let words = null;
  function text(row) {
    words ??= Array.from({ length: count }, (_, r) =>
      columns.map((column, c) => (column.kind === "text" ? values[c][r] : "")).join("\n").toLowerCase());
    return words[row];
  }

  const collator = new Intl.Collator(undefined, { numeric: true });
  function order(rows) {
    const { column, sign } = sorted;
    const cells = values[column];
    const numeric = columns[column].kind === "number";
    const empty = (row) => cells[row] === null || cells[row] === "";
    const compare = numeric ? (a, b) => cells[a] - cells[b] : (a, b) => collator.compare(cells[a], cells[b]);
    // What is not there comes last in both orders.
    return rows.filter((row) => !empty(row)).sort((a, b) => sign * compare(a, b))
      .concat(rows.filter(empty));
  }

  function filtered() {
    const wanted = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const subset = $("subset").value;
    const only = subset === "outliers" ? new Set(subsets.outliers) : null;
    const column = values[Number($("column").value)];
    const [low, high] = ["from", "to"].map((id) => $(id).valueAsNumber);
    const rows = [];
    for (let row = 0; row < count; row++) {
      if (subset === "top" && row >= subsets.top) break;
      if (subset === "groups" && values[at.duplicate_group][row] === null) continue;
      if (only && !only.has(row)) continue;
      const cell = column[row];
      if (!Number.isNaN(low) && !(cell !== null && cell >= low)) continue;
      if (!Number.isNaN(high) && !(cell !== null && cell <= high)) continue;
      if (wanted.length && !wanted.every((word) => text(row).includes(word))) continue;
      rows.push(row);
    }
    return rows;
  }

  function space(rows) {
    const line = document.createElement("tr");
    const cell = line.insertCell();
    line.className = "space";
    line.setAttribute("aria-hidden", "true");
    cell.colSpan = columns.length;
    cell.style.height = `${rows * ROW}px`;
    return line;
  }

  function draw() {
    const fits = Math.ceil(viewport.clientHeight / ROW);
    const start = Math.max(0, Math.min(Math.floor(viewport.scrollTop / ROW), shown.length - fits) - SPARE);
    if (start === first) return;
    first = start;
    const end = Math.min(shown.length, start + fits + 2 * SPARE);
    const lines = [];
    if (start > 0) lines.push(space(start));
    for (let i = start; i < end; i++) {
      const line = document.createElement("tr");
      line.setAttribute("aria-rowindex", String(i + 2));
      columns.forEach((column, c) => {
        const cell = line.insertCell();
        const value = values[c][shown[i]];
        cell.textContent = value === null ? "" : String(value);
        cell.className = column.kind;
        if (column.kind === "text") cell.title = value;
      });
      lines.push(line);
    }
    if (end < shown.length) lines.push(space(shown.length - end));
    body.replaceChildren(...lines);
  }

  function refresh() {
    shown = order(filtered());
    [...headings.cells].forEach((cell, c) => {
      if (c === sorted.column) cell.setAttribute("aria-sort", sorted.sign > 0 ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    });
    $("table").setAttribute("aria-rowcount", String(shown.length + 1));
    const which = `${shown.length.toLocaleString("en")} of ${count.toLocaleString("en")} images${subsets.total > count ? " on this page" : ""}`;
    const direction = sorted.sign > 0 ? "ascending" : "descending";
    $("status").textContent = `${which}, sorted by ${title(columns[sorted.column].key)}, ${direction}`;
    viewport.scrollTop = 0;
    first = -1;
    draw();
  }

  // Esc closes a modal dialog and gives the focus back to the button, both by the browser itself.
  const large = $("large");
  document.querySelectorAll("button.enlarge").forEach((button) => button.addEventListener("click", () => {
    const [picture, card] = [button.querySelector("img"), button.parentElement];
    const name = card.querySelector(":scope > .name, :scope > .neighbour").textContent;
    $("large-picture").src = picture.src;
    $("large-picture").alt = name;
    $("large-picture").classList.toggle("coarse", picture.naturalWidth <= 48);
    $("large-name").textContent = name;
    $("large-facts").textContent = [...(card.querySelector(":scope > .facts")?.childNodes ?? [])]
      .map((node) => node.textContent.trim()).filter(Boolean).join(", ");
    large.showModal();
  }));
  // A click beside the picture is one on the dialog itself.
  large.addEventListener("click", (event) => { if (event.target === large) large.close(); });

  if (at.map_x !== undefined) map();

  function map() {
    const canvas = $("plane");
    const LISTED = 500;
    const [xs, ys] = [values[at.map_x], values[at.map_y]];
    const bounds = (cells) => cells.reduce(([low, high], cell) => [Math.min(low, cell), Math.max(high, cell)], [Infinity, -Infinity]);
    const [[left, right], [low, high]] = [bounds(xs), bounds(ys)];
    const outliers = new Set(subsets.outliers);
    let selected = new Set();
    let path = null;
    const place = (row) => [
      12 + (canvas.clientWidth - 24) * (xs[row] - left) / (right - left || 1),
      canvas.clientHeight - 12 - (canvas.clientHeight - 24) * (ys[row] - low) / (high - low || 1),
    ];

    function paint() {
      const scale = devicePixelRatio;
      canvas.width = canvas.clientWidth * scale;
      canvas.height = canvas.clientHeight * scale;
      const pen = canvas.getContext("2d");
      const style = getComputedStyle(document.documentElement);
      const color = (name) => style.getPropertyValue(name);
      pen.scale(scale, scale);
      for (const chosen of [false, true]) {
        pen.fillStyle = color(chosen ? "--accent" : "--bar");
        for (let row = 0; row < count; row++) {
          if (selected.has(row) !== chosen) continue;
          const size = outliers.has(row) ? 8 : 4;
          const [x, y] = place(row);
          pen.fillRect(x - size / 2, y - size / 2, size, size);
        }
      }
      if (path) {
        pen.strokeStyle = color("--ink");
        pen.beginPath();
        path.forEach(([x, y]) => pen.lineTo(x, y));
        pen.stroke();
      }
    }

    function tell() {
      paint();
      $("export").disabled = !selected.size;
      const rows = [...selected].sort((a, b) => a - b);
      $("selected").textContent = rows.length
        ? `${rows.length.toLocaleString("en")} ${rows.length === 1 ? "image is" : "images are"} selected${rows.length > LISTED ? `; the first ${LISTED} are listed` : ""}.`
        : "No image is selected.";
      $("names").replaceChildren(...rows.slice(0, LISTED).map((row) => {
        const item = document.createElement("li");
        item.textContent = values[at.name][row];
        return item;
      }));
    }

    // Inside, if a ray to the right crosses the outline an odd number of times.
    const inside = (outline, [x, y]) => outline.reduce((odd, [ax, ay], k) => {
      const [bx, by] = outline[(k + 1) % outline.length];
      return (ay > y) !== (by > y) && x < ax + (bx - ax) * (y - ay) / (by - ay) ? !odd : odd;
    }, false);

    const point = (event) => [event.offsetX, event.offsetY];
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      path = [point(event)];
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!path) return;
      path.push(point(event));
      requestAnimationFrame(paint);
    });
    canvas.addEventListener("pointerup", (event) => {
      if (!path) return;
      const outline = path;
      path = null;
      if (!event.shiftKey) selected = new Set();
      for (let row = 0; row < count; row++) if (inside(outline, place(row))) selected.add(row);
      tell();
    });
    canvas.addEventListener("pointercancel", () => { path = null; paint(); });
    $("take").addEventListener("click", () => { selected = new Set(shown); tell(); });
    $("drop").addEventListener("click", () => { selected = new Set(); tell(); });
    $("export").addEventListener("click", () => {
      const link = document.createElement("a");
      const rows = [...selected].sort((a, b) => a - b);
      link.href = URL.createObjectURL(new Blob([rows.map((row) => `${values[at.name][row]}\n`).join("")], { type: "text/plain" }));
      link.download = "selected.txt";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    addEventListener("resize", paint);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
    paint();
  }

  let waiting = 0;
  function later() {
    clearTimeout(waiting);
    waiting = setTimeout(refresh, 120);
  }
  viewport.addEventListener("scroll", draw, { passive: true });
  addEventListener("resize", () => { first = -1; draw(); });
  $("controls").addEventListener("input", later);
  $("controls").addEventListener("reset", later);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  refresh();
})();
