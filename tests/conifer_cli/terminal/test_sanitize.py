"""The filter between a model and the terminal, with streams split at every position."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conifer_cli.terminal.sanitize import PAYLOAD_LIMIT, Filter, clean, clean_line

ESC, ST, BEL = "\x1b", "\x1b\\", "\x07"
BIDI = [*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))]

# (text between "a" and "b", text left after cleaning)
CASES = [
    # CSI: colours, cursor, erase, modes, private and intermediate bytes, unusual finals
    *[(f"{ESC}[{body}", "") for body in ("31m", "0m", "2J", "H", "10;20H", "K", "?25l", "?1049h")],
    *[(f"{ESC}[{body}", "") for body in ("6n", "c", ">c", "!p", "1;2;3;4m", "38:2::1:2:3m", "5 q")],
    *[(f"{ESC}[{body}", "") for body in ("s", "u", "?2004h", "14t", "21t", "1;1r", "@", "~")],
    # OSC 0, 4, 7, 8, 10, 52, 133, 1337, ended by BEL, by ST, by the 8-bit ST
    *[(f"{ESC}]{body}{BEL}", "") for body in ("0;owned", "4;1;red", "7;file:///etc", "10;?")],
    *[(f"{ESC}]{body}{ST}", "") for body in ("52;c;ZWNobyBoaQ==", "133;A", "1337;File=:AAAA")],
    (f"{ESC}]8;;http://evil.example{ST}", ""),
    (f"{ESC}]2;title\x9c", ""),
    (f"{ESC}]2;two\nlines{ST}", ""),
    # DCS, SOS, PM, APC
    *[(f"{ESC}{opener}payload{ST}", "") for opener in "PX^_"],
    (f"{ESC}P1$qm{ST}", ""),
    (f"{ESC}_Gf=24;AAAA{ST}", ""),
    # a new sequence inside a payload, and a cancelled one
    (f"{ESC}]0;x{ESC}[31m", ""),
    (f"{ESC}]0;x\x18", ""),
    (f"{ESC}]0;x\x1a", ""),
    # two-byte and charset escapes
    *[(f"{ESC}{final}", "") for final in "c78=>DEHMNOZ"],
    (f"{ESC}(0", ""),
    (f"{ESC}#8", ""),
    (f"{ESC}%G", ""),
    # 8-bit C1: CSI, OSC, DCS, SOS, PM, APC, ST, NEL, IND
    ("\x9b31m", ""),
    ("\x9d0;owned\x9c", ""),
    *[(f"{opener}payload\x9c", "") for opener in "\x90\x98\x9e\x9f"],
    *[(char, "") for char in "\x9c\x85\x84\x80"],
    # C0 on their own
    *[(char, "") for char in "\x00\x07\x08\x0b\x0c\x0e\x0f\x7f"],
    ("\r", "\n"),
    ("\r\n", "\n"),
    ("\r\r\n", "\n\n"),
    ("\r\x1b[K", "\n"),
    # bidirectional overrides
    *[(char, "") for char in BIDI],
    # and what must stay
    *[(text, text) for text in ("\n", "\t", " é ", "日本語", "🙂", "[bold]x[/bold]", "אבג")],
]


def test_filter_has_enough_cases():
    assert len(CASES) >= 60
    assert sum(len(text) + 3 for text, _ in CASES) >= 500


@pytest.mark.parametrize(("text", "left"), CASES)
def test_filter_gives_the_same_at_every_split(text, left):
    stream = f"a{text}b"
    for cut in range(len(stream) + 1):
        sieve = Filter()
        got = sieve.push(stream[:cut]) + sieve.push(stream[cut:]) + sieve.finish()
        assert got == f"a{left}b", cut


@pytest.mark.parametrize(("text", "left"), CASES)
def test_filter_gives_the_same_character_by_character(text, left):
    sieve = Filter()
    assert "".join(map(sieve.push, f"a{text}b")) + sieve.finish() == f"a{left}b"


@pytest.mark.parametrize("text", ["\x1b", "\x1b[", "\x1b[3", "\x1b]0;x", "\x1bPx\x1b", "\x9d0;x"])
def test_filter_drops_an_unfinished_sequence(text):
    assert clean(f"a{text}") == "a"


def test_filter_ends_a_trailing_return_with_a_newline():
    assert clean("a\r") == "a\n"


def test_filter_shows_text_after_a_payload_that_never_ends():
    assert clean("\x1b]" + "x" * (PAYLOAD_LIMIT + 1) + "after") == "after"


@given(st.text(st.sampled_from("ab\n\r\t\x07\x1b\x18[]P\\;0m\x9b\x9c\x9d\u202e"), max_size=40))
@settings(max_examples=500, deadline=None)
def test_filter_never_lets_a_control_character_through(text):
    assert not [c for c in clean(text) if (c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f"]
    assert not set(clean(text)) & set(BIDI)


def test_clean_line_makes_one_line_of_a_name():
    assert clean_line(" evil\r\n\x1b]0;t\x07name\u2028x\x9b2J ") == "evil name x"
