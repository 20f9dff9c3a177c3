"""Which package imports which: the order in which they stand, and a drawing of it.

``python tests/imports.py`` puts the drawing into CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "CONTRIBUTING.md"

# From the bottom to the top: a package imports from itself and from those before it. The method are
# the modules of influence_ssl itself but the errors, the memory, the threads and the processes.
ORDER = (
    "influence_ssl.errors", "influence_ssl._memory", "influence_ssl.processes",
    "influence_ssl.ahead", "influence_ssl.files", "influence_ssl.method",
    "influence_ssl.encoders", "influence_ssl.analysis", "influence_ssl.report",
    "influence_ssl.command", "influence_ssl.__main__", "influence_lab.tables",
    "influence_lab.figures", "influence_lab.theory",
    "influence_lab.datasets", "influence_lab.pretrain", "influence_lab.records",
    "influence_lab.measures", "influence_lab.benchmark", "influence_lab.practice",
    "influence_lab.experiments", "influence_lab.gpu", "influence_lab.cli",
)  # fmt: skip
DRAWING = re.compile(r"```mermaid\n.*?```\n", re.DOTALL)

Graph = dict[str, set[str]]


def imports(core: Path = ROOT / "core") -> Graph:
    """For each module those of ours that it imports: at its top or within, for types, by text."""
    paths = {}
    for path in sorted(core.rglob("*.py")):
        parts = path.relative_to(core).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: Graph = {}
    for name, path in paths.items():
        named, members = mentioned(path.read_text("utf-8"))
        # A member is a module of that package, or else something in its __init__.
        found = named | {one if one in paths else one.rpartition(".")[0] for one in members}
        graph[name] = (found & paths.keys()) - {name}
    del graph["influence_lab"]  # its name, and nothing in it
    return graph


@cache
def mentioned(source: str) -> tuple[frozenset[str], frozenset[str]]:
    """What a module names, by ``import`` or in a text, and what it takes from a package."""
    named: set[str] = set()
    members: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"an import by dots, line {node.lineno}"
            members |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named |= {node.value} if "." in node.value else set()
    return frozenset(named), frozenset(members)


def package(module: str) -> str:
    """The entry of :data:`ORDER` that a module belongs to."""
    root, _, rest = module.partition(".")
    found = f"{root}.{rest.partition('.')[0]}"
    return found if found in ORDER or root != "influence_ssl" else "influence_ssl.method"


def wrong(graph: Graph) -> list[str]:
    """Every import of a package that stands higher, or of another package's private module."""
    found = []
    for name, others in graph.items():
        for other in sorted(others):
            if ORDER.index(package(name)) < ORDER.index(package(other)):
                found.append(f"{name} imports {other}, which stands above it")
            if "._" in other and name.partition(".")[0] != other.partition(".")[0]:
                found.append(f"{name} imports {other}, which is private")
    return found


def drawing(graph: Graph) -> str:
    """The packages as a Mermaid graph, an arrow to each import that no other arrow implies."""
    direct: Graph = {name: set() for name in ORDER}
    for name, others in graph.items():
        direct[package(name)] |= {package(other) for other in others} - {package(name)}
    below: Graph = {}
    for name in ORDER:
        below[name] = direct[name].union(*(below[other] for other in direct[name]))
    lines = []
    for name in reversed(ORDER):
        implied = set().union(*(below[other] for other in direct[name]))
        lines += [f"    {name} --> {other}" for other in ORDER if other in direct[name] - implied]
    text = "\n".join(lines).replace("__main__", "main")
    return f"```mermaid\ngraph TD\n{text}\n```\n"


def main() -> None:
    """Draw anew."""
    page = PAGE.read_text("utf-8")
    PAGE.write_text(DRAWING.sub(lambda _: drawing(imports()), page), "utf-8")


if __name__ == "__main__":
    main()
