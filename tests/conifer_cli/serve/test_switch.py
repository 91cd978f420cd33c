"""A server without a model loads the one that a request names."""

from pathlib import Path

import pytest

from conifer_cli.errors import NoRoom
from conifer_cli.serve.fields import BadRequest
from conifer_cli.serve.web import status_of
from conifer_cli.terminal.format import size
from engine.errors import DoesNotFit, NumericError, TemplateRefusal
from support.giants import write_llama_405b
from support.program import MODELS, run_conifer, templated
from support.serving import CHATML, serving, snapshot


def install(home, repository, model):
    """Put a model on this machine. Returns its name."""
    made = home / "made"
    made.mkdir(exist_ok=True)
    target = snapshot(home, repository) / f"{model}.gguf"
    target.write_bytes(Path(templated(made, CHATML, model)).read_bytes())
    return f"hf:{repository}/{model}.gguf"


@pytest.mark.process
def test_requests_choose_among_the_models_here(tmp_path):
    assert (MODELS / "llama").is_dir()
    one, two = install(tmp_path, "a/one", "qwen3moe"), install(tmp_path, "a/two", "granitehybrid")
    listed = run_conifer("list", "--json", home=tmp_path).stdout.decode()
    assert one in listed and two in listed
    with serving(tmp_path, "-c", "1024") as server:
        names = [card["id"] for card in server.ask("/v1/models").json["data"]]
        assert names == [one, two]
        for name in (one, two, one):
            reply = server.chat("Hi", model=name)
            assert (reply.status, reply.json["model"]) == (200, name)
            assert server.ask("/health").json["model"] == name
        assert server.chat("Hi").status == 200  # the loaded one
        assert server.chat("Hi", model="hf:a/three/x.gguf").status == 404
        done = run_conifer("ps", "--port", str(server.port), home=tmp_path)
        assert done.returncode == 0 and one.encode() in done.stdout
        state = server.ask("/health").json
        assert 0 <= state["prefix_bytes"] < state["prefix_budget_bytes"]
        assert state["need_bytes"] < state["prefix_budget_bytes"]  # which it does not contain
        assert f"of {size(state['prefix_budget_bytes'])}".encode() in done.stdout


@pytest.mark.process
def test_a_model_that_does_not_fit_is_507_and_the_server_goes_on(tmp_path):
    small = install(tmp_path, "a/small", "granitehybrid")
    (path,) = write_llama_405b(snapshot(tmp_path, "a/giant"), 1)
    giant = f"hf:a/giant/{path.name}"
    with serving(tmp_path, "-c", "1024") as server:
        assert server.chat("Hi", model=small).status == 200
        refused = server.chat("Hi", model=giant)
        assert refused.status == 507
        error = refused.json["error"]
        assert giant in error["message"] and "GB" in error["message"]
        assert error["type"] == "server_error"
        message = {"model": giant, "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]}
        assert server.ask("/v1/messages", message).json["error"]["type"] == "api_error"
        assert server.chat("Hi").status == 200  # the model from before
        assert server.chat("Hi", model=small).status == 200
        assert b"Traceback" not in server.log.read_bytes()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NoRoom("x does not fit"), 507),
        (DoesNotFit("out of memory"), 507),
        (BadRequest("no", status=404), 404),
        (TemplateRefusal("roles must alternate"), 400),
        (NumericError("not finite"), 500),
    ],
)
def test_the_status_of_an_error(error, status):
    assert status_of(error) == status
