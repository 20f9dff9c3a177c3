// Typesets formulas with MathJax on Node: [{tex, display}] on standard input gives
// {html: [...], css} on standard output. The first argument is MathJax's folder.
const fs = require("fs");
const [, , folder] = process.argv;

require(`${folder}/node-main.js`)
  .init({
    loader: {
      load: ["input/tex-full", "output/chtml", "adaptors/liteDOM", "a11y/assistive-mml"],
      paths: { mathjax: folder },
    },
    tex: {
      packages: { "[-]": ["noerrors", "noundefined"] },
      formatError: (jax, error) => {
        throw error;
      },
    },
    chtml: { fontURL: ".", matchFontHeight: false, displayAlign: "center" },
    startup: { typeset: false },
  })
  .then((MathJax) => {
    const { document, adaptor } = MathJax.startup;
    const html = JSON.parse(fs.readFileSync(0, "utf8")).map(({ tex, display }) => {
      const item = new document.options.MathItem(tex, document.inputJax[0], display);
      item.start.node = adaptor.body(document.document);
      item.setMetrics(16, 8, 10000, 10000, 1);
      try {
        item.convert(document);
      } catch (error) {
        throw new Error(`${error.message} in ${tex}`);
      }
      const width = document.outputJax.getBBox(item, document).w;
      // The width in em lets a style sheet shrink a formula to the column's width.
      if (display || width > 12) adaptor.setStyle(item.typesetRoot, "--width", width.toFixed(2));
      return adaptor.outerHTML(item.typesetRoot);
    });
    const css = adaptor.textContent(MathJax.chtmlStylesheet());
    process.stdout.write(JSON.stringify({ html, css }));
  })
  .catch((error) => {
    process.stderr.write(`${error.message ?? error}\n`);
    process.exit(1);
  });
