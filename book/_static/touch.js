// What the pictures that answer back share: their place and numbers, SVG, numbers as text.
const touch = {
  // Calls draw(picture, data) where the page has a place and the chapter's numbers for it.
  open(name, draw) {
    const figure = document.getElementById(`touch-${name}`);
    const data = document.getElementById(`${name}-data`);
    if (!figure || !data) return;
    figure.hidden = false;
    draw(figure.querySelector(".touch-picture"), JSON.parse(data.textContent));
  },
  element(name, attributes = {}, ...children) {
    const svg = ["svg", "g", "line", "circle", "rect", "ellipse", "path", "text"].includes(name);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    touch.set(made, attributes);
    made.append(...children);
    return made;
  },
  set(element, attributes) {
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  },
  number(value, digits = 2) {
    return value.toFixed(digits).replace(/^-(?=0(\.0+)?$)/, "").replace("-", "−");
  },
  // A number of the page: rounded for the reader, exact in its value.
  show(element, value, text = touch.number(value)) {
    element.value = value;
    element.textContent = text;
  },
  // Shows the images of a sheet once the picture comes near.
  sheet(picture, url, columns) {
    picture.style.setProperty("--across", columns);
    const near = new IntersectionObserver(
      ([{ isIntersecting }]) => {
        if (!isIntersecting) return;
        picture.style.setProperty("--sheet", `url("${url}")`);
        near.disconnect();
      },
      { rootMargin: "1000px" },
    );
    near.observe(picture);
  },
  // Calls draw(width) now and whenever the picture's width changes.
  fit(picture, draw) {
    let width = 0;
    new ResizeObserver(() => {
      if (picture.clientWidth && picture.clientWidth !== width) draw((width = picture.clientWidth));
    }).observe(picture);
  },
};
