"""`conifer doctor`: what each check finds, and the exit code of the first that fails."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from conifer_cli import acquire, options
from conifer_cli.commands import doctor
from engine.errors import BackendError
from engine.fit.machine import Machine
from support.hub_server import HubServer, running_hub
from support.program import run_conifer, run_unplugged

NAMES = ["backend", "kernels", "memory", "cgroup", "cache", "hub", "versions", "config"]


@pytest.fixture
def server():
    with running_hub() as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_remembered():
    for remembered in (options.open_store, acquire.connect):
        remembered.cache_clear()


def check(done) -> dict[str, dict]:
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def machine(backend: str = "cpu", gib: float = 64) -> Machine:
    return Machine("a machine", backend, int(gib * 2**30), int(gib * 2**30), "available memory")


@pytest.mark.process
def test_there_is_one_line_a_check_and_nothing_on_stderr(tmp_path: Path, server: HubServer):
    done = run_conifer("doctor", home=tmp_path, HF_ENDPOINT=server.url)
    lines = done.stdout.decode().splitlines()
    assert done.stderr == b""
    assert [line.split()[1] for line in lines] == NAMES
    assert {line.split()[0] for line in lines} <= {"ok", "warn", "fail"}
    assert "speed on Metal not yet measured" in lines[0]
    assert f"{server.url} is reachable" in lines[5]
    failed = [line for line in lines if line.startswith("fail")]
    assert bool(failed) == bool(done.returncode)
    assert not (tmp_path / "conifer").exists()  # looking writes nothing


@pytest.mark.process
def test_json_has_the_same_checks(tmp_path: Path, server: HubServer):
    done = run_conifer("doctor", "--json", home=tmp_path, HF_ENDPOINT=server.url)
    document = json.loads(done.stdout)
    assert [check["name"] for check in document["checks"]] == NAMES
    assert all(set(check) == {"name", "status", "detail", "advice"} for check in document["checks"])
    assert document["status"] in ("ok", "warn", "fail")
    assert check(done)["hub"]["status"] == "ok"
    assert all(request.host == "hub" for request in server.requests)  # no file was asked for


@pytest.mark.process
def test_a_hub_that_does_not_answer_fails_with_the_code_of_the_network(tmp_path: Path):
    done = run_conifer("doctor", "--json", home=tmp_path)  # nobody listens at this endpoint
    found = check(done)["hub"]
    assert done.returncode == 5
    assert found["status"] == "fail" and "http://127.0.0.1:9" in found["detail"]
    assert "HF_ENDPOINT" in found["advice"]


@pytest.mark.process
def test_offline_mode_opens_no_socket(tmp_path: Path):
    done = run_unplugged("doctor", "--json", home=tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert "was not contacted" in check(done)["hub"]["detail"]


@pytest.mark.process
def test_an_endpoint_that_is_no_address_is_named(tmp_path: Path):
    done = run_conifer("doctor", "--json", home=tmp_path, HF_ENDPOINT="nonsense")
    assert done.returncode == 5 and "HF_ENDPOINT" in check(done)["hub"]["detail"]


@pytest.mark.process
def test_a_token_that_is_refused_is_a_warning(tmp_path: Path, server: HubServer):
    server.files[f"{doctor.PROBE_REPOSITORY}/model.gguf"] = b"GGUF"
    server.gated.add(doctor.PROBE_REPOSITORY)
    done = run_conifer(
        "doctor", "--json", home=tmp_path, HF_ENDPOINT=server.url, HF_TOKEN="hf_wrong"
    )
    found = check(done)["hub"]
    assert found["status"] == "warn" and "HF_TOKEN" in found["advice"]
    assert b"hf_wrong" not in done.stdout + done.stderr


@pytest.mark.process
def test_a_home_that_is_a_file_fails_with_the_code_of_the_store(tmp_path: Path):
    (tmp_path / "conifer").write_text("")
    done = run_conifer("doctor", "--json", home=tmp_path, HF_HUB_OFFLINE="1")
    found = check(done)["cache"]
    assert done.returncode == 5
    assert found["status"] == "fail" and "CONIFER_HOME" in found["advice"]


@pytest.mark.process
def test_a_name_that_no_folder_can_have_fails_with_the_code_of_the_store(tmp_path: Path):
    place = str(tmp_path / ("x" * 300))
    done = run_conifer("doctor", "--json", home=tmp_path, HF_HOME=place, HF_HUB_OFFLINE="1")
    found = check(done)["cache"]
    assert done.returncode == 5
    assert found["status"] == "fail" and "HF_HOME" in found["advice"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("gib", "status", "code"), [(0.2, "fail", 4), (1.2, "warn", 0), (64, "ok", 0)]
)
def test_memory_is_judged_by_what_fits_in_it(tmp_path: Path, gib: float, status: str, code: int):
    size = int(gib * 2**30)
    done = run_unplugged("doctor", "--json", home=tmp_path, memory_bytes=size, HF_HUB_OFFLINE="1")
    assert check(done)["memory"]["status"] == status
    assert done.returncode == code


@pytest.mark.process
def test_a_config_file_is_checked(tmp_path: Path):
    config = tmp_path / "conifer" / "config.toml"
    config.parent.mkdir()
    config.write_text("temprature = 1\n")
    done = run_conifer("doctor", "--json", home=tmp_path, HF_HUB_OFFLINE="1")
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}["config"]
    assert (found["status"], found["advice"]) == ("fail", "Did you mean temperature?")
    assert "config.toml, line 1, temprature" in found["detail"]
    config.write_text("temperature = 1\n[run]\nseed = 3\n")
    assert b"2 settings" in run_conifer("doctor", home=tmp_path, HF_HUB_OFFLINE="1").stdout


@pytest.mark.parametrize("backend", ["metal", "cuda"])
def test_a_gpu_is_not_yet_measured(backend: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.fit.machine.this_machine", lambda: machine(backend))
    monkeypatch.setattr("engine.device.backend", lambda: backend)
    found = doctor.check_backend()
    assert found.status == "warn" and f"speed on {backend} not yet measured" in found.detail.lower()
    assert doctor.check_kernels().status == "ok"


def test_a_machine_without_a_backend_fails(monkeypatch: pytest.MonkeyPatch):
    def none():
        raise BackendError("MLX has no backend here: install one")

    monkeypatch.setattr("engine.device.backend", none)
    found = [doctor.check_backend(), doctor.check_kernels(), doctor.check_memory()]
    assert [(c.status, c.code) for c in found] == [("fail", 1)] * 3
    assert "install one" in found[0].detail


def test_slow_kernels_are_a_warning_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.device.backend", lambda: "cpu")
    monkeypatch.setattr("engine.kernels.native.unavailable_reason", lambda: "no compiler was there")
    found = doctor.check_kernels()
    assert found.status == "warn"
    assert "no compiler was there" in found.detail and "compiler" in found.advice


@pytest.mark.parametrize(
    ("room", "share", "status"),
    [(None, None, "ok"), (8 << 30, 2.5, "ok"), (8 << 30, 0.5, "warn")],
)
def test_a_cgroup_says_what_it_allows(room, share, status, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("engine.fit.machine.cgroup_available", lambda root: room)
    monkeypatch.setattr("engine.device.cgroup_cores", lambda root: share)
    found = doctor.check_cgroup()
    assert found.status == status
    assert ("8.6 GB" in found.detail) == (room is not None)


@pytest.mark.parametrize(("free", "status", "code"), [(2**29, "fail", 4), (10**10, "warn", 0)])
def test_a_disk_that_is_nearly_full_is_told(
    free: int, status: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CONIFER_HOME", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=free, total=2**40))
    found = doctor.check_cache()
    assert (found.status, found.code) == (status, code) and "conifer rm" in found.advice


def test_versions_that_a_requirement_excludes_are_told(monkeypatch: pytest.MonkeyPatch):
    here = {"mlx": "0.32.1", "numpy": "2.10.0", "conifer-cli": "0.1.0", "jinja2": "3.1.6.post1"}
    monkeypatch.setattr(doctor, "installed_version", here.get)
    monkeypatch.setattr(
        "importlib.metadata.requires",
        lambda name: ["mlx==0.32.4", "numpy>=2.9", "jinja2>=3.1.6", 'mlx[cpu]==9; extra == "cpu"'],
    )
    found = doctor.check_versions()
    assert (found.status, found.code) == ("fail", 1)
    assert "mlx==0.32.4 (installed: 0.32.1)" in found.advice
    assert "numpy" not in found.advice and "jinja2" not in found.advice
    here["mlx"] = "0.32.4"
    assert doctor.check_versions().status == "ok"
