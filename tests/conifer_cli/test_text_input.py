"""Text that is read: a byte-order mark is skipped, UTF-16 is named; an empty variable is unset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conifer_cli.chat import attachments, line_editor
from conifer_cli.errors import UsageError
from support.program import MODELS, run_conifer

QWEN = str(MODELS / "qwen3moe" / "model.gguf")
GREEDY = ("--temperature", "0", "--max-tokens", "2")
MARK = b"\xef\xbb\xbf"
CONFIG = "format = 1\r\n[run]\r\ntemperature = 0.2\r\n"
ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32")


def write_config(home: Path, data: bytes) -> Path:
    path = home / "conifer" / "config.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.process
def test_the_mark_of_a_config_file_is_skipped(tmp_path):
    write_config(tmp_path, MARK + CONFIG.encode())
    done = run_conifer("run", QWEN, "hi", "--verbose", "--max-tokens", "1", home=tmp_path)
    assert done.returncode == 0 and b"temperature 0.2 (config file)" in done.stderr


@pytest.mark.process
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_config_file_in_another_encoding_is_told_by_its_name(tmp_path, encoding):
    path = write_config(tmp_path, CONFIG.encode(encoding))
    done = run_conifer("list", home=tmp_path)
    name = encoding[:6].upper()
    said = (
        f"conifer: {path} is {name} text, not UTF-8\nConvert it, such as with `iconv -f {name}`.\n"
    )
    assert (done.returncode, done.stderr.decode()) == (2, said)


@pytest.mark.process
def test_the_mark_of_a_prompt_and_of_a_schema_is_skipped(tmp_path):
    schema = tmp_path / "s.json"
    schema.write_bytes(MARK + b'{"const": 1}')
    asked = ("run", QWEN, "--json", "--schema", schema, *GREEDY)
    plain, marked = (
        json.loads(run_conifer(*asked, home=tmp_path, stdin=data).stdout)
        for data in (b"hi", MARK + b"hi")
    )
    assert plain["answer"] == marked["answer"] == "1" and plain["usage"] == marked["usage"]


@pytest.mark.process
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_prompt_or_schema_in_another_encoding_is_told_by_its_name(tmp_path, encoding):
    done = run_conifer("run", QWEN, *GREEDY, home=tmp_path, stdin="what?".encode(encoding))
    assert (done.returncode, done.stdout) == (2, b"")
    assert f"standard input is {encoding[:6].upper()} text" in done.stderr.decode()
    schema = tmp_path / "s.json"
    schema.write_bytes('{"const": 1}'.encode(encoding))
    done = run_conifer("run", QWEN, "hi", "--schema", schema, home=tmp_path)
    assert done.returncode == 2 and f"{schema} is {encoding[:6].upper()}" in done.stderr.decode()


@pytest.mark.process
def test_invalid_bytes_in_a_schema_are_refused(tmp_path):
    schema = tmp_path / "s.json"
    schema.write_bytes(b'{\n"const": "\xff"}')
    done = run_conifer("run", QWEN, "hi", "--schema", schema, home=tmp_path)
    assert done.returncode == 2 and b"s.json, line 2: invalid UTF-8" in done.stderr


def test_a_file_to_send_is_read_alike(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(MARK + "é".encode())
    assert attachments.read_text(path) == "é"
    path.write_bytes("é und mehr".encode("utf-16"))
    with pytest.raises(UsageError, match=r"x\.txt is UTF-16 text, not UTF-8"):
        attachments.read_text(path)


def test_a_history_with_a_mark_is_read_and_kept(tmp_path):
    path = tmp_path / "history"
    line_editor.add_to_history(path, "one")
    path.write_bytes(MARK + path.read_bytes())
    line_editor.add_to_history(path, "two")
    assert line_editor.read_history(path) == ["one", "two"]


# Each used to be an error, a folder below the current one, or a limit of another kind.
EMPTY = (
    *("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_DOWNLOAD_TIMEOUT"),
    *("HF_HUB_ETAG_TIMEOUT", "HF_TOKEN", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"),
    *("CONIFER_HOME", "CONIFER_TEMPERATURE", "CONIFER_STOP", "CONIFER_CONTEXT", "CONIFER_SEED"),
    *("CONIFER_KV_TYPE", "CONIFER_OFFLINE", "CONIFER_NOHISTORY", "PIP_INDEX_URL", "HTTPS_PROXY"),
    *("NO_COLOR", "TERM", "COLUMNS", "LINES", "TMPDIR", "LANG", "LC_ALL", "EDITOR", "VISUAL"),
)


@pytest.mark.process
def test_an_empty_variable_is_an_unset_one(tmp_path):
    for command in (("doctor", "--json"), ("run", QWEN, "hi", *GREEDY), ("list", "--json")):
        unset = run_conifer(*command, home=tmp_path, HF_HUB_OFFLINE="1")
        empty = run_conifer(*command, home=tmp_path, **dict.fromkeys(EMPTY, ""), HF_HUB_OFFLINE="1")
        assert (empty.returncode, empty.stderr) == (unset.returncode, unset.stderr)
        assert command[0] == "doctor" or empty.stdout == unset.stdout
    assert {path.name for path in tmp_path.iterdir()} <= {"conifer", "hf", ".local", ".cache"}
