"""Every recorded result comes out again, and so does what cannot be recorded without it."""

import pytest
from again import AGAIN, leaves

from influence_lab.records import results


@pytest.mark.parametrize("name", AGAIN)
def test_a_recorded_result_is_made_again(name, made_again):
    case, root = AGAIN[name], made_again(name)
    made, tracked = (results.load_record("tiny", case.record, r) for r in (root, None))
    assert made["provenance"]["data_sha256"] == tracked["provenance"]["data_sha256"]
    command = f"influence-lab reproduce {case.result} --profile tiny --seed 0"
    assert made["provenance"]["command"] == command
    assert case.result == "table-4" or (root / "figure.svg").read_text().startswith("<?xml")
    numbers = {
        place: number
        for place, number in leaves(made).items()
        if case.extra is None or case.extra not in place
    }
    assert len(numbers) > 20
    known = leaves(tracked)
    assert numbers.keys() <= known.keys()
    for place, number in numbers.items():
        rank = case.ranks is not None and place.startswith(case.ranks)
        tolerance = 0.01 * tracked["images"] if rank else case.tolerance
        assert number == pytest.approx(known[place], rel=1e-3, abs=tolerance), place


@pytest.mark.parametrize("result", ["fig-1", "fig-2", "fig-3", "fig-10", "table-4", "levels"])
def test_without_an_encoder_the_command_says_what_to_run(result, tmp_path, capsys):
    from influence_lab.cli import main

    assert main(["reproduce", result, "--profile", "tiny", "--results", str(tmp_path)]) == 1
    assert "first run influence-lab pretrain simclr --profile tiny" in capsys.readouterr().err
