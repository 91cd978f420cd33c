"""The SDKs that clients use, against a real server. They parse the streams."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.isolation import only_one_process
from support.serving import serving

pytestmark = [pytest.mark.process, pytest.mark.network, pytest.mark.slow]
CLIENTS = Path(__file__).parents[2] / "data" / "clients"
NPM = ("ai", "@ai-sdk/openai-compatible")


@pytest.fixture(scope="module")
def server(tmp_path_factory, starter_path):
    with serving(tmp_path_factory.mktemp("serve"), str(starter_path)) as server:
        yield server


@pytest.mark.parametrize("package", ["openai", "anthropic"])
def test_a_python_sdk(server, package, pytestconfig):
    place = Path(pytestconfig.cache.mkdir("sdks")) / package
    python = place / "bin" / "python"
    with only_one_process(place.with_suffix(".lock")):
        if not python.exists():
            subprocess.run([sys.executable, "-P", "-m", "venv", str(place)], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", package], check=True)
    done = subprocess.run(
        [python, CLIENTS / f"{package}_sdk.py", server.url],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout == "ok\n", done.stderr


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_the_ai_sdk(server, pytestconfig):
    place = Path(pytestconfig.cache.mkdir("sdks")) / "npm"
    place.mkdir(exist_ok=True)
    with only_one_process(place.with_suffix(".lock")):
        if not (place / "node_modules" / "ai").exists():
            subprocess.run(["npm", "install", "--silent", *NPM], cwd=place, check=True)
        shutil.copy(CLIENTS / "ai_sdk.mjs", place)
    done = subprocess.run(
        ["node", "ai_sdk.mjs", server.url],
        cwd=place, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout == "ok\n", done.stderr
