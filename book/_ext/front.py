"""What the first page shows and every page says of itself.

``{front-images}`` shows the images of highest and of lowest score with their scores, from the
records of Figure 5. ``{front-explorer}`` is a picture that leads to the score explorer.
``{how-to-cite}`` is ``CITATION.cff`` as BibTeX, with the version. The head of every page gets a
description, its first paragraph, and a card for those who share a link to it. The card is also the
README's picture; ``python book/_ext/front.py`` draws it again from the records.
"""

from __future__ import annotations

import base64
import io
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import yaml
from docutils import nodes
from PIL import Image, ImageDraw, ImageFont
from sphinx.util.docutils import SphinxDirective

from influence_lab import figures
from influence_lab.experiments import explorer, galleries
from influence_lab.records import results
from influence_lab.records.thumbnails import load_sheet

if TYPE_CHECKING:
    import numpy as np
    from sphinx.application import Sphinx

SHOWN = 6
CARD = Path(__file__).parents[1] / "_static" / "card.jpg"
_METHOD, _SEED = "simclr", 0
_DOTS = 150  # an inch of the explorer's picture
_WORDS = 40  # of a description
_ROWS = (("highest", "Highest influence"), ("lowest", "Lowest influence"))
_CARD_SIZE = (1200, 630)


def _recorded() -> tuple[np.ndarray, results.RecordedScores, dict[str, Any]]:
    found = results.largest_record("galleries")
    if found is None:
        raise FileNotFoundError("book/results: no record of fig-5; restore it from the repository")
    profile, record = found
    pictures = load_sheet(galleries.path_of("fig-5", profile), galleries.TOP)
    scores = results.load_scores(profile, _METHOD, _SEED, "train")
    if scores is None:
        raise FileNotFoundError(f"book/results/{profile}: no scores of {_METHOD}-{_SEED}")
    return pictures, scores, record


def bounds(scores: results.RecordedScores) -> dict[str, tuple[float, float]]:
    """Between which magnitudes the images shown lie; the outer end is the outermost image's.

    Recorded scores are ranks and quantiles, so the inner end is the quantile next to them.
    """
    low, high = scores.quantiles[:2], scores.quantiles[-2:]
    step = (len(scores) - 1) / (len(scores.quantiles) - 1)
    assert step >= galleries.TOP, "the images shown lie beyond the outermost quantile"
    return {"highest": (float(high[0]), float(high[1])), "lowest": (float(low[0]), float(low[1]))}


def _inline(picture: np.ndarray) -> str:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def images_html(link: str) -> str:
    """Two rows of images under their scores; ``link`` leads to the figure that they are from."""
    pictures, scores, record = _recorded()
    between = bounds(scores)
    rows = []
    for number, (end, title) in enumerate(_ROWS):
        chosen = pictures[number * galleries.TOP :][:SHOWN]
        low, high = between[end]
        tiles = "".join(
            f'<li><img src="{_inline(picture)}" width="32" height="32" '
            f'alt="{end} score, number {place}"></li>'
            for place, picture in enumerate(chosen, 1)
        )
        rows.append(
            f'<div class="front-row"><p><strong>{title}</strong> '
            f"<span>−<i>I</i> from {_number(low)} to {_number(high)}</span></p>"
            f'<ol class="front-images">{tiles}</ol></div>'
        )
    median = float(scores.quantiles[len(scores.quantiles) // 2])
    return (
        f'<figure class="front">{"".join(rows)}<figcaption>The {SHOWN} images with the highest and '
        f"the {SHOWN} with the lowest influence among {record['images']:,} of "
        f"{escape(record['data'])}, for a SimCLR encoder that never saw a label. The median is "
        f"{_number(median)}. "
        f'<a href="{escape(link)}">More of them, measured</a></figcaption></figure>'
    )


class FrontImages(SphinxDirective):
    """``{front-images}``: no argument, no content."""

    def run(self) -> list[nodes.Node]:
        """A raw node: docutils knows no list of images."""
        self.env.note_reread()
        up = "../" * self.env.docname.count("/")
        link = f"{up}book/experiments/galleries.html#paper-fig-5"
        return [nodes.raw("", images_html(link), format="html")]


def explorer_html(link: str) -> str:
    """The explorer's figure at rest, as a link to the explorer."""
    found = results.largest_record("explorer")
    if found is None:
        raise FileNotFoundError("book/results: no record explorer; restore it from the repository")
    profile, record = found
    data = io.BytesIO()
    with mpl.rc_context():
        figures.use_style()
        picture = explorer.figure(profile, record)
        picture.savefig(data, format="png", dpi=_DOTS)
        plt.close(picture)
    drawn, small = Image.open(data).convert("RGB"), io.BytesIO()
    drawn.save(small, format="WEBP", quality=80, method=6)
    source = f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"
    loss = record["correlations"][_METHOD]["loss"][0]
    return (
        f'<figure class="front"><a href="{escape(link)}"><img src="{source}" '
        f'width="{drawn.width}" height="{drawn.height}" '
        'alt="Explore the scores: a narrow rising cloud of points with small photographs in their '
        'places; across the loss, up the score"></a>'
        f"<figcaption>{record['images']:,} images by loss and score; the rank correlation is "
        f'{loss:.2f}. <a href="{escape(link)}">Choose an image, and compare the score with other '
        "numbers</a></figcaption></figure>"
    )


class FrontExplorer(SphinxDirective):
    """``{front-explorer}``: no argument, no content."""

    def run(self) -> list[nodes.Node]:
        """A raw node: docutils has no picture that is a link with words of its own."""
        self.env.note_reread()
        up = "../" * self.env.docname.count("/")
        link = f"{up}book/experiments/loss.html#touch-explorer"
        return [nodes.raw("", explorer_html(link), format="html")]


def citation(root: Path) -> dict[str, Any]:
    """``CITATION.cff``."""
    found: dict[str, Any] = yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))
    return found


def bibtex(cff: dict[str, Any]) -> str:
    """The paper, and this book with its library, as BibTeX entries."""
    paper = cff["preferred-citation"]
    names = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    preprint = next(i["value"] for i in paper["identifiers"] if i["type"] == "other")
    own = " and ".join(f"{{{a['name']}}}" for a in cff["authors"])
    first = paper["authors"][0]["family-names"].lower()
    return "\n".join(
        (
            f"@article{{{first}{paper['year']}influence,",
            f"  title   = {{{{{paper['title']}}}}},",
            f"  author  = {{{names}}},",
            f"  journal = {{arXiv preprint {preprint}}},",
            f"  year    = {{{paper['year']}}}",
            "}",
            "",
            "@software{influencesslbook,",
            f"  title   = {{{{{cff['title']}}}}},",
            f"  author  = {{{own}}},",
            f"  version = {{{cff['version']}}}",
            "}",
        )
    )


class HowToCite(SphinxDirective):
    """``{how-to-cite}``: no argument, no content."""

    def run(self) -> list[nodes.Node]:
        """A block of BibTeX; sphinx-copybutton gives it its button."""
        self.env.note_dependency("CITATION.cff")
        text = bibtex(citation(Path(self.env.srcdir)))
        return [nodes.literal_block(text, text, language="bibtex")]


class Version(SphinxDirective):
    """``{version-line}``: the version and, as content, what to say after it."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """One paragraph."""
        version = citation(Path(self.env.srcdir))["version"]
        parsed = self.parse_content_to_nodes()
        first = parsed[0]
        assert isinstance(first, nodes.paragraph)
        first.insert(0, nodes.Text(f"Version {version}. "))
        return parsed


def description(doctree: nodes.document) -> str:
    """The first paragraph of a page, cut at the end of a word."""
    for paragraph in doctree.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section | nodes.document):
            words = paragraph.astext().split()
            text = " ".join(words[:_WORDS])
            return text if len(words) <= _WORDS else f"{text} …"
    return ""


def _head(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    title = re.sub("<[^>]+>", "", context.get("title", "")) or escape(app.config.html_title)
    about = escape(description(doctree), quote=True) if doctree is not None else ""
    about = about or f"{title}, in {escape(app.config.html_title)}"
    base = app.config.html_baseurl or "../" * pagename.count("/")
    tags = {
        "og:type": "article",
        "og:title": title,
        "og:description": about,
        "og:image": f"{base}_static/{CARD.name}",
    }
    lines = [f'<meta property="{name}" content="{text}"/>' for name, text in tags.items()]
    lines.append('<meta name="twitter:card" content="summary_large_image"/>')
    lines.append(f'<meta name="description" content="{about}"/>')
    context["metatags"] = context.get("metatags", "") + "\n".join(lines)


def card(title: str) -> Image.Image:
    """The images of the first page, under the book's title."""
    pictures, scores, _ = _recorded()
    picture = Image.new("RGB", _CARD_SIZE, "white")
    draw = ImageDraw.Draw(picture)
    large, small = ImageFont.load_default(52), ImageFont.load_default(34)
    draw.text((60, 40), title, "#1a1a1a", large)
    between, side = bounds(scores), 165
    for number, (end, words) in enumerate(_ROWS):
        top = 130 + number * (side + 75)
        low, high = (_number(value) for value in between[end])
        draw.text((60, top), f"{words}: −I from {low} to {high}", "#1a1a1a", small)
        for place in range(SHOWN):
            one = Image.fromarray(pictures[number * galleries.TOP + place])
            one = one.resize((side, side), Image.Resampling.BICUBIC)
            picture.paste(one, (60 + place * (side + 18), top + 52))
    return picture


def title(root: Path) -> str:
    """The book's."""
    found: str = yaml.safe_load((root / "_config.yml").read_text("utf-8"))["title"]
    return found


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives and the head's tags."""
    app.add_directive("front-images", FrontImages)
    app.add_directive("front-explorer", FrontExplorer)
    app.add_directive("how-to-cite", HowToCite)
    app.add_directive("version-line", Version)
    app.connect("html-page-context", _head)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    card(title(Path(__file__).parents[2])).save(CARD, quality=88)
