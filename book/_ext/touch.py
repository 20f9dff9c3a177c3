"""Pictures that answer back.

``{touch} NAME`` is a place for the picture that ``_static/touch-NAME.js`` draws; its content is the
caption. A cell of the chapter puts the numbers into the page, as a script of type
``application/json`` with the id ``NAME-data``. Without scripts and on paper the place stays hidden:
the chapter's own figure, which it follows, shows the same numbers at rest.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SHARED = "touch.js"
_PLACE = re.compile(r'<figure class="touch" id="touch-([a-z]+)"')


class Touch(SphinxDirective):
    """``{touch} NAME``, with the caption as content."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """The place, hidden until its script has filled it."""
        opening = (
            f'<figure class="touch" id="touch-{self.arguments[0]}" hidden>'
            '<div class="touch-picture"></div><figcaption>'
        )
        return [
            nodes.raw("", opening, format="html"),
            *self.parse_content_to_nodes(),
            nodes.raw("", "</figcaption></figure>", format="html"),
        ]


def _load(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    names = _PLACE.findall(context.get("body", ""))
    for script in ([SHARED] if names else []) + [f"touch-{name}.js" for name in names]:
        app.add_js_file(script, loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive; only pages with a picture load its script."""
    app.add_directive("touch", Touch)
    app.connect("html-page-context", _load)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
