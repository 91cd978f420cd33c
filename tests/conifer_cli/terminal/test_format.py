"""Formatting of numbers and tables."""

from __future__ import annotations

import pytest

from conifer_cli.terminal.format import count, duration, gigabytes, shares, size


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (98_362_432, "98.4 MB"), (18_556_685_824, "18.6 GB")],
)
def test_size_is_decimal(size_bytes, text):
    assert size(size_bytes) == text


def test_memory_is_given_in_both_units():
    assert gigabytes(18_556_685_824) == "18.6 GB (17.3 GiB)"


def test_count_writes_parameters_short():
    assert [count(n) for n in (30_532_122_624, 134_515_008, None)] == ["30.5B", "135M", "-"]


def test_shares_are_of_the_whole_in_order():
    assert (
        shares({"IQ2_XS": 41_400, "Q6_K": 58_200, "F32": 400}) == "IQ2_XS 41 %, Q6_K 58 %, F32 <1 %"
    )
    assert shares({}) == "" and shares({"F32": 0}) == "F32 <1 %"


@pytest.mark.parametrize(
    ("seconds", "text"), [(48.2, "48 s"), (720, "12 min"), (11_100, "3 h 05 min")]
)
def test_duration_reads_like_speech(seconds, text):
    assert duration(seconds) == text
