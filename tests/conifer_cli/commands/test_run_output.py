"""What `run` prints and where, by the options that choose it; a tiny model, run for real."""

from __future__ import annotations

import json

import pytest

from conifer_cli.errors import NoCode
from conifer_cli.run_options import RunOptions
from conifer_cli.session.response import Response
from engine.text.reasoning import Kind
from support.program import MODELS, run_conifer, templated

pytestmark = pytest.mark.process

QWEN = str(MODELS / "qwen3moe" / "model.gguf")
GREEDY = ("--temperature", "0", "--max-tokens", "8")
THINKS = "{{ messages[0].content }}<think>\n"
PARTS = [
    (Kind.THINKING, "Hm."),
    (Kind.ANSWER, "So:\n```py\nx\x1b[31m = 1\n"),
    (Kind.ANSWER, "```\nDone."),
]


def test_json_is_one_object_with_answer_usage_rates_and_finish_reason(tmp_path):
    plain = run_conifer("run", QWEN, "hello", *GREEDY, home=tmp_path)
    done = run_conifer("run", QWEN, "hello", *GREEDY, "--seed", "5", "--json", home=tmp_path)
    record = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, b"")
    assert record["model"] == QWEN
    assert (record["finish_reason"], record["cut_by"]) == ("length", "max_tokens")
    usage = record["usage"]
    assert usage["completion_tokens"] == 8 and usage["reasoning_tokens"] == 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + 8
    assert record["rates"]["completion_tokens_per_s"] > 0 and record["rates"]["total_s"] > 0
    assert (record["seed"], record["context"], record["thinking"]) == (5, 2048, "")
    assert plain.stdout.decode().strip()[:1] in record["answer"]


def test_json_keeps_thinking_out_of_the_answer_and_off_stderr(tmp_path):
    asked = ("run", templated(tmp_path, THINKS), "hi", *GREEDY, "--json")
    done = run_conifer(*asked, home=tmp_path)
    record = json.loads(done.stdout)
    assert (done.returncode, record["answer"], record["answer_empty"]) == (0, "", True)
    assert done.stderr.startswith(b"conifer: no answer: ") and done.stderr.count(b"\n") == 1
    assert record["thinking"] and record["usage"]["reasoning_tokens"] == 8
    shown = run_conifer(*asked, "--show-thinking", home=tmp_path)
    assert shown.stderr.strip() and json.loads(shown.stdout)["thinking"] == record["thinking"]


def test_an_answer_cut_by_the_context_is_in_the_json_too_and_exits_4(tmp_path):
    done = run_conifer(
        "run", QWEN, "a b c d e", "--temperature", "0", "-c", "24", "--json", home=tmp_path
    )
    record = json.loads(done.stdout)
    assert (done.returncode, record["finish_reason"], record["cut_by"]) == (4, "length", "context")
    assert record["usage"]["total_tokens"] == record["context"] == 24


def test_without_a_seed_one_is_drawn_that_repeats_the_answer(tmp_path):
    asked = ("run", QWEN, "hello", "--temperature", "1.5", "--max-tokens", "16", "--json")
    first, other = (json.loads(run_conifer(*asked, home=tmp_path).stdout) for _ in range(2))
    assert first["seed"] != other["seed"] and 0 <= first["seed"] < 1 << 53
    again = json.loads(run_conifer(*asked, "--seed", str(first["seed"]), home=tmp_path).stdout)
    assert again["seed"] == first["seed"]
    assert again["answer"] == first["answer"] != other["answer"]


def test_no_stream_prints_the_same_at_once(tmp_path):
    streamed = run_conifer("run", QWEN, "hello", *GREEDY, home=tmp_path)
    whole = run_conifer("run", QWEN, "hello", *GREEDY, "--no-stream", home=tmp_path)
    assert (whole.returncode, whole.stdout) == (0, streamed.stdout)


def test_raw_is_what_the_model_wrote_and_no_newline(tmp_path):
    asked = ("run", QWEN, "hello", *GREEDY, "--seed", "1")
    record = json.loads(run_conifer(*asked, "--json", home=tmp_path).stdout)
    done = run_conifer(*asked, "--raw", home=tmp_path)
    assert (done.returncode, done.stdout) == (0, record["answer"].encode())


def test_a_stop_text_ends_the_answer_and_is_left_out(tmp_path):
    asked = ("run", QWEN, "hello", *GREEDY, "--json")
    whole = json.loads(run_conifer(*asked, home=tmp_path).stdout)["answer"]
    stop = whole[3:5]
    for flags, more in ((("--stop", stop), {}), ((), {"CONIFER_STOP": stop})):
        record = json.loads(run_conifer(*asked, *flags, home=tmp_path, **more).stdout)
        assert record["finish_reason"] == "stop"
        assert record["answer"] == whole[: whole.index(stop)]


def test_extract_prints_the_first_block_and_stops_there(capsys):
    reply = Response(RunOptions(extract=True))
    reply.print(iter(PARTS))
    assert capsys.readouterr() == ("x = 1\n", "")
    assert reply.thinking == "Hm."


def test_extract_without_a_block_is_an_error(capsys):
    with pytest.raises(NoCode):
        Response(RunOptions(extract=True)).print(iter([(Kind.ANSWER, "No code here.")]))
    assert capsys.readouterr() == ("", "No code here.\n")


def test_verbose_names_the_file_and_where_each_setting_came_from(tmp_path):
    done = run_conifer("run", QWEN, "hi", *GREEDY, "--verbose", home=tmp_path, CONIFER_TOP_P="0.5")
    said = done.stderr.decode()
    assert done.returncode == 0 and done.stdout.strip()
    assert f"from {QWEN} (866.1 kB)" in said and "2,048-token context" in said
    assert "temperature 0.0 (command line)" in said
    assert "top_p 0.5 (CONIFER_TOP_P)" in said
    assert "min_p 0.0 (default)" in said
    assert "tokens/s" in said


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen3-30b-a3b", "hf:org/repo"])
def test_offline_fetches_nothing_and_exits_5(tmp_path, name):
    done = run_conifer("run", name, "hi", "--offline", home=tmp_path)
    assert (done.returncode, done.stdout) == (5, b"")
    assert b"is not on this machine, and --offline" in done.stderr


def test_effort_reaches_the_template(tmp_path):
    effort = "{{ reasoning_effort if reasoning_effort is defined else 'unset' }}"
    template = effort + " {{ messages[0].content }}"
    path = templated(tmp_path, template)
    for flags, said in (((), "unset"), (("--effort", "high"), "high"), (("--no-think",), "low")):
        asked = run_conifer("run", path, "hi", *GREEDY, *flags, home=tmp_path)
        plain = run_conifer("run", QWEN, f"{said} hi", *GREEDY, home=tmp_path)
        assert (asked.returncode, asked.stdout) == (0, plain.stdout)


@pytest.mark.parametrize(
    ("flags", "said"),
    [(("--effort", "low"), b"reasoning_effort"), (("--reasoning-budget", "9"), b"does not reason")],
)
def test_a_wish_that_a_model_would_ignore_exits_2_unless_it_is_a_standing_one(
    tmp_path, flags, said
):
    path = templated(tmp_path, "{{ messages[0].content }}")
    typed = run_conifer("run", path, "hi", *flags, home=tmp_path)
    assert (typed.returncode, typed.stdout) == (2, b"")
    assert said in typed.stderr
    variable = "CONIFER_" + flags[0][2:].replace("-", "_").upper()
    standing = run_conifer("run", path, "hi", *GREEDY, home=tmp_path, **{variable: flags[1]})
    assert (standing.returncode, standing.stderr) == (0, b"")


def test_interactive_without_a_terminal_exits_2(tmp_path):
    done = run_conifer("run", QWEN, "-i", *GREEDY, home=tmp_path, stdin=b"hi")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"terminal" in done.stderr
