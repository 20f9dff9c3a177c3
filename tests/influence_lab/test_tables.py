from __future__ import annotations

from bs4 import BeautifulSoup

from influence_lab.tables import table


def test_one_line_per_mapping_in_the_order_of_its_keys():
    frame = table([{"name": "a", "n": 1, "x": 0.5}, {"name": "a", "n": 2, "y": "late"}], heads=2)
    assert list(frame.columns) == ["x", "y"]
    assert frame.values.tolist() == [["0.5", ""], ["", "late"]]
    page = BeautifulSoup(frame.to_html(), "html.parser")
    # A name that repeats stands once, over both of its lines.
    assert [th["rowspan"] for th in page.select("tbody th[rowspan]")] == ["2"]
    assert [th.text for th in page.select("tbody th")] == ["a", "1", "2"]
