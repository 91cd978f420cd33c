"""How the comparison of downloads comes to its figures."""

from __future__ import annotations

from support.benchmarks import program

download = program("download")


def turn(wall, transfer):
    return {"wall_bytes_per_s": wall, "transfer_bytes_per_s": transfer}


def test_a_ratio_is_our_rate_divided_by_theirs_pair_by_pair():
    pairs = [
        {"conifer": turn(30, 8), "hf": turn(10, 4)},
        {"conifer": turn(5, 3), "hf": turn(10, 4)},
    ]
    found = download.ratios(pairs)
    assert found["wall_bytes_per_s"] == {"median": 1.75, "low": 0.5, "high": 3.0, "count": 2}
    assert found["transfer_bytes_per_s"]["median"] == 1.375


def test_either_program_is_summed_up_by_itself():
    pairs = [{"conifer": turn(1, 2), "hf": turn(3, 4)}, {"conifer": turn(3, 2), "hf": turn(5, 4)}]
    found = download.medians(pairs)
    assert found["conifer"]["wall_bytes_per_s"]["median"] == 2
    assert found["hf"]["wall_bytes_per_s"]["median"] == 4
