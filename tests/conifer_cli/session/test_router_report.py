"""The expert report: its figures, heat map and PNG, and the commands that show them."""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from conifer_cli.session.router_report import (
    COLOURS,
    SHADES,
    RouterReport,
    document,
    heat_map,
    png,
    summary,
)
from engine.gguf.reader import open_model
from support.program import MODELS, command, environment, run_conifer
from support.terminal_session import TerminalSession

ESCAPES = re.compile(r"\x1b\[(?:48;5;\d+|0)m")
QWEN = str(MODELS / "qwen3moe" / "model.gguf")  # 2 of 8 experts in each of 2 layers
DENSE = str(MODELS / "qwen3" / "model.gguf")
ASK = ("hello there", "--max-tokens", "6", "--seed", "1", "--context", "256")


def report(hits: list[list[int]] | np.ndarray, used: int = 1, **more: int) -> RouterReport:
    table = np.array(hits)
    tokens = int(table[0].sum()) // used
    sizes = {"token_bytes": 3 * 10**9, "dense_bytes": 12 * 10**9} | more
    return RouterReport("a model", tuple(range(3, 3 + len(table))), used, tokens, table, **sizes)


def drawn(text: str) -> list[str]:
    """Return the cells of each layer from the heat map without colours."""
    return re.findall(r"^ {,4}\d+ (.*?)  +\d+\.\d\d  +\d+$", text, re.MULTILINE)


def test_the_figures_are_those_that_one_would_count_by_hand():
    figures = document(report([[4, 4, 4, 4], [16, 0, 0, 0]], used=2))
    assert (figures["tokens"], figures["experts"], figures["experts_used"]) == (8, 4, 2)
    assert figures["entropy_bits"] == {"mean": 1.0, "low": 0.0, "high": 2.0}
    assert figures["experts_for_90_percent"] == 2.5 and figures["never_chosen"] == 3
    assert [layer["layer"] for layer in figures["layers"]] == [3, 4]
    assert figures["layers"][1] == {
        "layer": 4,
        "entropy_bits": 0.0,
        "experts_for_90_percent": 1,
        "hits": [16, 0, 0, 0],
    }


def test_the_summary_compares_with_a_dense_model():
    text = "\n".join(summary(report([[4, 4, 4, 4], [16, 0, 0, 0]], used=2)))
    assert "8 tokens, 2 of 4 experts in each of 2 layers" in text
    assert "1.00 of 2.00 bits" in text and "2.5 experts per layer (62%)" in text
    assert "never chosen: 3 of 8 experts" in text
    assert "3.0 GB; a dense model of the same size would read 12.0 GB (4.0 times as much)" in text


def test_the_hottest_cell_is_full_and_an_expert_never_chosen_is_empty():
    lines = heat_map(report([[8, 4, 0, 1], [13, 0, 0, 0]]), 80, coloured=False)
    assert lines[2].startswith("    3 ") and lines[3].startswith("    4 ")
    assert lines[2][6:10] == "▅▃ ▁" and lines[3][6:10] == "█   "
    assert lines[-1] == f"never {SHADES} 4.0x an even share"


def test_experts_that_have_no_cell_of_their_own_share_one():
    hits = np.zeros((1, 128), int)
    hits[0, :3], hits[0, 127] = 2, 9
    caption, _, row, _ = heat_map(report(hits), 80, coloured=False)
    assert "3 experts" in caption
    assert row[6:49] == "▄" + " " * 41 + "█"  # means: 6 hits / 3, 9 hits / 2


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("experts", [8, 60, 128, 512])
@pytest.mark.parametrize("coloured", [False, True])
def test_a_picture_is_no_wider_than_the_terminal(experts: int, columns: int, coloured: bool):
    hits = np.random.default_rng(0).integers(0, 9, (4, experts))
    hits[:, 0] = 10
    lines = heat_map(report(hits), columns, coloured)
    plain = [ESCAPES.sub("", line) for line in lines]
    assert not any("\x1b" in line for line in plain)
    assert all(len(line) <= columns for line in plain[1:])
    if coloured:
        assert lines[2].count("\x1b[48;5;") == -(-experts // -(-experts // (columns - 19)))
        assert f"48;5;{COLOURS[-1]}m" in "".join(lines[2:-1])


def decoded(data: bytes) -> tuple[np.ndarray, dict[bytes, bytes]]:
    """Return the palette indices (rows, columns) of a PNG, and its chunks."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(name + body)
        chunks[name] = body
        at += 12 + length
    assert [*chunks][:: len(chunks) - 1] == [b"IHDR", b"IEND"]
    width, height, *form = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert form == [8, 3, 0, 0, 0]
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:], chunks


def test_the_png_has_a_square_for_each_expert_of_each_layer():
    pixels, chunks = decoded(png(report([[8, 4, 0, 1], [13, 0, 0, 0]])))
    assert pixels.shape == (2 * 16, 4 * 16)
    cells = pixels[::16, ::16]
    assert (pixels == np.kron(cells, np.ones((16, 16), int))).all()
    assert cells.tolist() == [[157, 79, 0, 20], [255, 0, 0, 0]]  # 255 / 13 each, rounded up
    palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(256, 3)
    assert palette[0].tolist() == [0, 0, 0] and palette[255].tolist() == [255, 255, 230]
    assert b"layers 3 to 4" in chunks[b"tEXt"] and b"4.00 times" in chunks[b"tEXt"]


def test_a_png_of_many_experts_stays_small():
    pixels, _ = decoded(png(report(np.ones((94, 512), int))))
    assert pixels.shape == (94 * 2, 512 * 2)


@pytest.mark.process
def test_the_answer_is_the_same_and_the_picture_is_on_stderr(tmp_path: Path):
    plain = run_conifer("run", QWEN, *ASK, home=tmp_path)
    done = run_conifer("run", QWEN, *ASK, "--experts", home=tmp_path)
    assert (done.returncode, done.stdout) == (0, plain.stdout)
    assert plain.stderr == b"" and b"\x1b" not in done.stderr
    text = done.stderr.decode()
    assert [len(cells) for cells in drawn(text)] == [8, 8]
    assert "2 of 8 experts in each of 2 layers" in text and "a dense model" in text


@pytest.mark.process
def test_json_has_the_counts_of_what_was_run(tmp_path: Path):
    out = tmp_path / "report.json"
    done = run_conifer("run", QWEN, *ASK, "--experts-out", str(out), "--json", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    figures, answer = json.loads(out.read_text()), json.loads(done.stdout)
    assert "experts" not in answer
    assert figures["tokens"] == answer["usage"]["prompt_tokens"] + 5  # the sixth was not fed back
    assert [sum(layer["hits"]) for layer in figures["layers"]] == [2 * figures["tokens"]] * 2
    done = run_conifer("run", QWEN, *ASK, "--experts", "--json", home=tmp_path)
    assert json.loads(done.stdout)["experts"]["layers"] == figures["layers"]
    assert done.stderr == b""


@pytest.mark.process
def test_the_bytes_are_those_of_the_tensors(tmp_path: Path):
    out = tmp_path / "report.json"
    run_conifer("run", QWEN, *ASK, "--experts-out", str(out), home=tmp_path)
    figures, tensors = json.loads(out.read_text()), open_model(Path(QWEN)).tensors
    sizes = {name: info.size_bytes for name, info in tensors.items()}
    experts = sum(size for name, size in sizes.items() if "_exps." in name)
    unread = 0
    if "output.weight" in sizes:  # only one row of the embedding is read
        unread = sizes["token_embd.weight"] * (1 - 1 / tensors["token_embd.weight"].shape[0])
    assert figures["dense_token_bytes"] == pytest.approx(sum(sizes.values()) - unread, abs=4)
    assert figures["token_bytes"] == pytest.approx(
        figures["dense_token_bytes"] - experts * 6 / 8, abs=4
    )


@pytest.mark.process
def test_a_png_is_written_and_nothing_is_drawn(tmp_path: Path):
    out = tmp_path / "report.PNG"
    done = run_conifer("run", QWEN, *ASK, "--experts-out", str(out), home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert decoded(out.read_bytes())[0].shape == (32, 128)


@pytest.mark.process
def test_a_dense_model_answers_and_says_that_it_has_no_experts(tmp_path: Path):
    done = run_conifer("run", DENSE, *ASK, "--experts", home=tmp_path)
    assert done.returncode == 0 and done.stdout
    assert done.stderr.decode().splitlines() == [
        f"conifer: {DENSE} is a dense model, so it has no experts"
    ]
    done = run_conifer("run", DENSE, *ASK, "--experts-out", "x.json", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"") and b"is a dense model" in done.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("report.svg", 2, "expected a file name ending in .png or .json"),
        ("nowhere/report.png", 2, "the folder 'nowhere' does not exist"),
        (f"{'x' * 300}/report.png", 2, "does not exist"),
        ("folder.json", 2, "folder.json is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, name: str, code: int, said: str):
    (tmp_path / "folder.json").mkdir()
    done = run_conifer("run", QWEN, *ASK, "--experts-out", name, home=tmp_path)
    assert done.returncode == code and said in done.stderr.decode()
    assert bool(done.stdout) == (code == 1)  # the rest fail before the answer


@pytest.mark.process
def test_a_terminal_gets_colours_and_nothing_else(tmp_path: Path):
    settings = environment(tmp_path, TERM="xterm-256color", COLUMNS="80")
    with TerminalSession([*command(), "run", QWEN, *ASK, "--experts"], settings) as session:
        assert session.wait() == 0
        assert len(re.findall(r"\x1b\[48;5;\d+m ", session.screen)) >= 16
        assert "a dense model of the same size" in session.screen
    settings |= {"NO_COLOR": "1"}
    with TerminalSession([*command(), "run", QWEN, *ASK, "--experts"], settings) as session:
        assert session.wait() == 0
        assert "\x1b[48" not in session.screen


@pytest.mark.process
def test_a_conversation_shows_the_last_answer(tmp_path: Path):
    settings = environment(tmp_path, TERM="dumb", COLUMNS="80")
    arguments = ["run", QWEN, *ASK[1:]]
    out = tmp_path / "report.json"
    with TerminalSession([*command(), *arguments], settings) as session:
        session.expect(">>> ")
        session.type("/experts\n")
        session.expect("nothing has been generated yet")
        session.type("hello there\n")
        session.expect(">>> ")
        session.type("/experts\n")
        session.expect("a dense model of the same size")
        session.type(f"/experts {out}\n")
        session.expect("Written to")
        session.type("/experts report.svg\n")
        session.expect("expected a file name ending in .png or .json")
        session.type("/bye\n")
        assert session.wait() == 0
    layers = json.loads(out.read_text())["layers"]
    assert [len(layer["hits"]) for layer in layers] == [8, 8]
