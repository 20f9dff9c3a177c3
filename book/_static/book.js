// A picture opens at full size over the page. Without this script its link opens it alone.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a.enlarge");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const small = link.querySelector("img");
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  dialog.setAttribute("aria-label", "Enlarged picture");
  const large = small.cloneNode();
  large.removeAttribute("style");
  const close = document.createElement("button");
  close.textContent = "Close";
  dialog.append(large, close);
  dialog.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
});

// Paper shows what is folded; a page that was printed folds again.
const opened = new Set();
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("article details.provenance:not([open])")) {
    fold.open = true;
    opened.add(fold);
  }
});
addEventListener("afterprint", () => {
  for (const fold of opened) fold.open = false;
  opened.clear();
});

// The sections that are read are marked in the page's contents, and the button to the top shows on
// the way up.
document.addEventListener("DOMContentLoaded", () => {
  const links = new Map();
  for (const link of document.querySelectorAll(".bd-toc-nav a[href^='#']")) {
    const section = document.getElementById(decodeURIComponent(link.hash.slice(1)));
    if (section) links.set(section, link);
  }
  const line = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      links.get(target).classList.toggle("active", isIntersecting);
    }
  }, { rootMargin: "-15% 0px -85% 0px" });
  for (const section of links.keys()) line.observe(section);

  const toTop = document.getElementById("pst-back-to-top");
  if (!toTop) return;
  toTop.addEventListener("click", () => scrollTo(0, 0));
  let before = 0;
  addEventListener("scroll", () => {
    if (scrollY === before) return;
    toTop.style.display = scrollY > 0 && scrollY < before ? "block" : "none";
    before = scrollY;
  }, { passive: true });
});

// What scrolls is reached by the keyboard. All boxes are measured before the first is changed, or the
// page is laid out again for each, as it is for each that is measured in what is folded.
function tabStops() {
  const all = document.querySelectorAll("pre, .cell_output > .output, mjx-container[display='true']");
  const boxes = [...all].filter((e) => e.checkVisibility());
  const scrolls = boxes.map((e) => e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight);
  boxes.forEach((box, i) => {
    if (scrolls[i]) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  });
}
let resized;
addEventListener("load", tabStops);
addEventListener("toggle", tabStops, true);
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(tabStops, 300);
});
