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
