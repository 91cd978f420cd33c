"""Text files that go with a prompt."""

from __future__ import annotations

import pytest

from conifer_cli.chat.attachments import split_paths
from conifer_cli.errors import UsageError
from conifer_cli.session import files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with four text files."""
    for name in ("a.py", "src/b.py", "src/deep/c.py", "two words.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {path.name}\n\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_and_patterns_are_read_once_each_and_introduced_by_name(folder):
    found = files.texts(["src/**/*.py", "a.py", "src/b.py", "-"])
    assert found == [
        "src/b.py:\ntext of b.py",
        "src/deep/c.py:\ntext of c.py",
        "a.py:\ntext of a.py",
    ]


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\x89PNG\r\n", "a PNG image"),
        (b"\xff\xd8\xff\xe0", "a JPEG image"),
        (b"%PDF-1.7", "a PDF document"),
        (b"GGUF\x03", "a model"),
        (b"\x7fELF", "a program"),
        (b"abc\0def", "a binary file"),
    ],
)
def test_what_is_not_text_is_refused_by_what_it_is(folder, start, kind):
    (folder / "x").write_bytes(start + bytes(100))
    with pytest.raises(UsageError, match=f"x is {kind}") as caught:
        files.texts(["x"])
    assert "reads text only" in caught.value.hint


@pytest.mark.parametrize(
    ("pattern", "said"), [("*.md", "no file matches"), ("b.py", "cannot read")]
)
def test_a_pattern_without_a_file_is_an_error(folder, pattern, said):
    with pytest.raises(UsageError, match=said):
        files.texts([pattern])


@pytest.mark.parametrize(
    ("prompt", "text", "names"),
    [
        ("@a.py", "text of a.py\n\n", []),
        ("Compare @a.py, @src/b.py.", "Compare a.py, src/b.py.", ["a.py", "src/b.py"]),
        ("Mail ada@a.py about @nobody", "Mail ada@a.py about @nobody", []),
        ('Read @"two words.txt" now', "Read two words.txt now", ["two words.txt"]),
    ],
)
def test_an_at_sign_in_a_prompt_names_a_file(folder, prompt, text, names):
    assert files.split_mentions(prompt) == (text, names)


@pytest.mark.parametrize(
    ("line", "names", "question"),
    [
        ("a.py", ["a.py"], ""),
        ("two words.txt", ["two words.txt"], ""),
        ("a.py src/b.py compare them", ["a.py", "src/b.py"], "compare them"),
        ("src/*.py 'two words.txt' why?", ["src/b.py", "two words.txt"], "why?"),
    ],
)
def test_a_line_may_begin_with_several_files(folder, line, names, question):
    paths, rest = split_paths(line)
    assert ([str(path) for path in paths], rest) == (names, question)
