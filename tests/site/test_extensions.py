"""The book's own Sphinx extensions, without a build."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pages import ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))

from freshcache import FILES, FOLDERS, fingerprint
from polish import polish


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir(parents=True)
    for name in FILES:
        (tmp_path / name).write_text("pinned")
    (tmp_path / "core" / "scorer.py").write_text("return -g")
    (tmp_path / "book" / "results" / "run.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("path", ["core/scorer.py", "book/results/run.json", FILES[0]])
def test_cache_is_outdated_by_a_change_below_the_chapters(tree: Path, path: str) -> None:
    before = fingerprint(tree)
    assert fingerprint(tree) == before
    (tree / path).write_text("changed")
    assert fingerprint(tree) != before


def test_cache_is_outdated_by_a_new_record(tree: Path) -> None:
    before = fingerprint(tree)
    (tree / "book" / "results" / "scores.npz").write_bytes(b"1")
    assert fingerprint(tree) != before


def test_cache_survives_what_running_leaves_behind(tree: Path) -> None:
    before = fingerprint(tree)
    (tree / "core" / "__pycache__").mkdir()
    (tree / "core" / "__pycache__" / "scorer.pyc").write_bytes(b"1")
    (tree / "core" / "influence_ssl.egg-info").mkdir()
    (tree / "core" / "influence_ssl.egg-info" / "PKG-INFO").write_text("1")
    assert fingerprint(tree) == before


def test_polish_mends_once() -> None:
    page = (
        '<link rel="preload" as="font" type="font/woff2" crossorigin href="x.woff2" />\n'
        '<div class="bd-sidebar-primary bd-sidebar"></div>'
        '<input id="search-input"/><input id="search-input"/><th class="head"></th><th>a</th>'
        '<section id="proof-content"></section><section id="proof-content"></section>'
    )
    mended = polish(page)
    assert "woff2" not in mended
    assert "proof-content" not in mended
    assert mended.count('id="search-input"') == 1
    assert '<td class="head"></td><th>a</th>' in mended
    assert 'role="region" aria-label="Sidebar"' in mended
    assert polish(mended) == mended
