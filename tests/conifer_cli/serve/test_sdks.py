"""The SDKs that clients use, and whole programs, against a real server. They parse the streams."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conifer_cli.serve.client_configs import CLIENT_CONFIGS, configured
from support.isolation import only_one_process
from support.serving import serving

pytestmark = [pytest.mark.process, pytest.mark.network, pytest.mark.slow]
CLIENTS = Path(__file__).parents[2] / "data" / "clients"
NPM = ("ai", "@ai-sdk/openai-compatible")
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.fixture(scope="module")
def server(tmp_path_factory, starter_path):
    with serving(tmp_path_factory.mktemp("serve"), str(starter_path)) as server:
        yield server


def from_pypi(package, pytestconfig):
    """The programs of an environment that has a package."""
    place = Path(pytestconfig.cache.mkdir("sdks")) / package
    programs = place / "bin"
    with only_one_process(place.with_suffix(".lock")):
        if not programs.exists():
            subprocess.run([sys.executable, "-P", "-m", "venv", str(place)], check=True)
        install = [programs / "python", "-m", "pip", "install", "-q", package]
        subprocess.run(install, check=True)
    return programs


def from_npm(packages, pytestconfig):
    """A folder where packages are installed."""
    place = Path(pytestconfig.cache.mkdir("sdks")) / "npm"
    place.mkdir(exist_ok=True)
    with only_one_process(place.with_suffix(".lock")):
        if not all((place / "node_modules" / package).exists() for package in packages):
            subprocess.run(["npm", "install", "--silent", *packages], cwd=place, check=True)
    return place


def configuration(client, server):
    """What --print-config prints for a client."""
    (card,) = server.ask("/v1/models").json["data"]
    context = card["context_length"]
    return configured(CLIENT_CONFIGS[client], server.url, card["id"], context, "none")


def answered(server):
    """How many answers have ended."""
    lines = server.ask("/metrics").body.decode().splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("conifer_answers_total")
    )


@pytest.mark.parametrize("package", ["openai", "anthropic"])
def test_a_python_sdk(server, package, pytestconfig):
    python = from_pypi(package, pytestconfig) / "python"
    done = subprocess.run(
        [python, CLIENTS / f"{package}_sdk.py", server.url],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout == "ok\n", done.stderr


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_the_ai_sdk(server, pytestconfig):
    place = from_npm(NPM, pytestconfig)
    shutil.copy(CLIENTS / "ai_sdk.mjs", place)
    done = subprocess.run(
        ["node", "ai_sdk.mjs", server.url],
        cwd=place, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout == "ok\n", done.stderr


def test_llm(server, pytestconfig, tmp_path):
    (tmp_path / "extra-openai-models.yaml").write_text(configuration("llm", server))
    before, program = answered(server), from_pypi("llm", pytestconfig) / "llm"
    done = subprocess.run(
        [program, "-m", "conifer", "Say hello."], env={**PLAIN, "LLM_USER_PATH": str(tmp_path)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert answered(server) == before + 1


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_opencode(server, pytestconfig, tmp_path):
    config = json.loads(configuration("opencode", server))
    for model in config["provider"]["conifer"]["models"].values():
        model["limit"]["output"] = 100
    (tmp_path / "opencode.json").write_text(json.dumps(config))
    place, before = from_npm(("opencode-ai",), pytestconfig), answered(server)
    done = subprocess.run(
        [place / "node_modules" / ".bin" / "opencode", "run", "Say hello."],
        env={**PLAIN, "HOME": str(tmp_path), "PWD": str(tmp_path)}, cwd=tmp_path,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert answered(server) > before  # else it has asked another server
