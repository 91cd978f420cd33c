"""How the comparison comes to its figures."""

from __future__ import annotations

import pytest

from support.benchmarks import program

compare = program("compare")
ON, OFF = {"repack": True, "flash": True}, {"repack": False, "flash": False}


def turn(settings, start_s, prefill, decode):
    figures = {"start_s": start_s, "prefill_512": prefill, "decode_0": decode}
    return {"settings": settings, "figures": figures}


def test_each_figure_takes_the_variant_that_did_best_in_any_try():
    probes = [turn(ON, 3, 200, 10), turn(OFF, 1, 100, 12), turn(ON, 2, 90, 11)]
    probes.append({"settings": ON, "failed": "exit -9"})
    assert compare.choose(probes) == {"start_s": OFF, "prefill_512": ON, "decode_0": OFF}


def test_a_ratio_above_one_is_faster_pair_by_pair():
    chosen = {"start_s": OFF, "prefill_512": ON, "decode_0": OFF}
    pairs = [
        {"conifer": turn({}, 1, 400, 20), "llama": [turn(ON, 9, 200, 1), turn(OFF, 2, 1, 10)]},
        {"conifer": turn({}, 1, 300, 30), "llama": [turn(ON, 9, 100, 1), turn(OFF, 3, 1, 10)]},
    ]
    ratios = compare.ratios(pairs, chosen)
    assert ratios["prefill_512"] == {"median": 2.5, "low": 2.0, "high": 3.0, "count": 2}
    assert ratios["decode_0"]["median"] == 2.5 and ratios["start_s"]["median"] == 2.5


def test_a_pair_whose_other_half_failed_does_not_count():
    chosen = {"decode_0": OFF}
    failed = {"settings": OFF, "failed": "exit 1: no context"}
    pairs = [{"conifer": turn({}, 1, 1, 20), "llama": [failed]}]
    assert compare.ratios(pairs, chosen)["decode_0"] == {"median": None, "count": 0}


def test_a_file_is_read_to_its_end(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert compare.read_through(tmp_path / "abc").startswith("ba7816bf")


@pytest.mark.parametrize("pairs", ["4", "0"])
def test_fewer_than_five_pairs_are_refused(monkeypatch, capsys, pairs):
    monkeypatch.setattr("sys.argv", ["compare.py", "m.gguf", "--name", "x", "--pairs", pairs])
    with pytest.raises(SystemExit):
        compare.parse()
    assert "at least 5" in capsys.readouterr().err
