// A recorded query and the training images that help it, hurt it and lie nearest to it.
touch.open("trace", (picture, { rows, sheet, columns, shown }) => {
  const { element, number, show } = touch;
  const LISTS = ["Helps most", "Hurts most", "Nearest neighbours"];
  picture.style.setProperty("--sheet", `url(${sheet})`);
  picture.style.setProperty("--across", columns);

  function thumbnail(row, column, label) {
    const made = element("span", { class: "touch-thumbnail", role: "img", "aria-label": label });
    made.style.setProperty("--row", row);
    made.style.setProperty("--column", column);
    return made;
  }

  const choices = element("fieldset", { class: "touch-choices" }, element("legend", {}, "Query"));
  rows.forEach((row, k) => {
    const input = element("input", { type: "radio", name: "trace-query", value: k });
    input.checked = k === 0;
    input.addEventListener("change", () => update(k));
    choices.append(element("label", {}, input, thumbnail(k, 0, row.class), element("span", {}, row.kind)));
  });
  const lists = element("div", { class: "touch-lists" });
  const [sameClass, near] = ["same-class", "near"].map((name) => element("data", { class: `touch-${name}` }));
  const who = element("span");
  const says = element("p", { class: "touch-says", role: "status" }, "Query: ", who, `. Of the ${shown} images that help it most, `, sameClass, " of its class and ", near, ` among its ${shown} nearest neighbours.`);
  picture.append(choices, lists, says);

  function update(k) {
    const row = rows[k];
    const largest = Math.max(...row.influence.map(Math.abs));
    const [, ...places] = row.positions;
    const part = (one, list) => one.slice(list * shown, (list + 1) * shown);
    lists.replaceChildren(
      ...LISTS.map((title, list) => {
        const items = part(row.influence, list).map((influence, i) => {
          const column = list * shown + i;
          const amount = element("data", { class: "touch-influence" });
          show(amount, influence, (influence > 0 ? "+" : "") + number(influence, Math.abs(influence) < 100 ? 1 : 0));
          const bar = element("span", { class: `touch-bar${influence > 0 ? " touch-hurts" : ""}` });
          bar.style.width = `${(100 * Math.abs(influence)) / largest}%`;
          const words = element("span", { class: "touch-words" }, row.classes[column], " ", amount, bar);
          return element("li", {}, thumbnail(k, column + 1, row.classes[column]), words);
        });
        return element("section", { "aria-label": title }, element("p", {}, title), element("ol", {}, ...items));
      }),
    );
    const count = (found) => (found === 1 ? "1 is" : `${found || "none"} are`);
    const helpers = part(places, 0), neighbours = part(places, 2);
    const same = part(row.classes, 0).filter((name) => name === row.class).length;
    const both = helpers.filter((place) => neighbours.includes(place)).length;
    show(sameClass, same, count(same));
    show(near, both, count(both));
    who.textContent = `${row.kind}, ${row.class}`;
  }
  update(0);
});
