"""Listings, choices, header bytes and refusals, against a loopback hub."""

from __future__ import annotations

import socket
import sys

import httpx2
import pytest
from huggingface_hub import close_session, constants

import catalog
from catalog.hub.client import Hub, _next_url
from catalog.hub.retry import RetryPolicy
from catalog.hub.session import TransientError, cache_folder
from support.hub_server import COMMIT, Fault, HubServer, sha256

BIG = b"GGUF" + bytes(range(256)) * 40_000  # 10,240,004 bytes
ONCE = RetryPolicy(retries=0)


def test_listing_has_sizes_hashes_and_commit(hub_server: HubServer) -> None:
    hub_server.files = {"org/repo/m-Q8_0.gguf": BIG, "org/repo/README.md": b"hello"}
    found = {file.name: file for file in Hub().files("org/repo")}
    model = found["m-Q8_0.gguf"]
    assert (model.size_bytes, model.sha256) == (10_240_004, sha256(BIG))
    assert (model.etag, model.commit, model.revision) == (sha256(BIG), COMMIT, "main")
    assert found["README.md"].sha256 is None


def test_listing_drops_names_that_lead_out(hub_server: HubServer) -> None:
    hub_server.files = {"org/repo/../../evil.gguf": BIG, "org/repo/a.gguf": BIG}
    assert [file.name for file in Hub().files("org/repo")] == ["a.gguf"]


def test_find_returns_all_parts_in_order(hub_server: HubServer) -> None:
    names = [f"Q4_K_M/m-Q4_K_M-0000{i}-of-00003.gguf" for i in (3, 1, 2)]
    hub_server.files = {f"org/repo/{name}": BIG for name in (*names, "m-Q8_0.gguf")}
    found = Hub().find(catalog.resolve("hf:org/repo:Q4_K_M"))
    assert [f.name for f in found] == sorted(names)
    assert [f.name for f in Hub().find(catalog.resolve("hf:org/repo:Q8_0"))] == ["m-Q8_0.gguf"]


def test_find_accepts_an_older_spelling(hub_server: HubServer) -> None:
    hub_server.files = {"ggml-org/gpt-oss-20b-GGUF/gpt-oss-20b-mxfp4.gguf": BIG}
    found = Hub().find(catalog.resolve("gpt-oss-20b"))
    assert [file.name for file in found] == ["gpt-oss-20b-mxfp4.gguf"]


def test_header_is_read_by_range_and_grows_without_repeating(hub_server: HubServer) -> None:
    hub_server.files = {"org/repo/m.gguf": BIG}
    hub = Hub()
    (file,) = hub.find(catalog.resolve("hf:org/repo"))
    assert hub.header(file, 100_000) == BIG[:100_000]
    assert hub.header(file, 150_000) == BIG[:150_000]
    assert hub.header(file, 50) == BIG[:50]
    ranges = [request.headers["range"] for request in hub_server.sent_to("storage")]
    assert ranges == ["bytes=0-99999", "bytes=100000-149999"]
    assert hub_server.bytes_served == 150_000


def test_header_longer_than_the_file_is_the_file(hub_server: HubServer) -> None:
    hub_server.files = {"org/repo/m.gguf": b"GGUF1234"}
    hub = Hub()
    (file,) = hub.find(catalog.resolve("hf:org/repo"))
    assert hub.header(file, 10**9) == b"GGUF1234"


def test_header_stops_early_where_ranges_are_not_honoured(hub_server: HubServer) -> None:
    hub_server.files = {"org/repo/m.gguf": BIG}
    hub_server.faults = [Fault("no-range"), Fault("no-range")]
    hub = Hub()
    (file,) = hub.find(catalog.resolve("hf:org/repo"))
    assert hub.header(file, 1000) == BIG[:1000]
    assert hub.header(file, 2000) == BIG[:2000]


def test_missing_repository_and_revision_are_not_found(hub_server: HubServer) -> None:
    hub_server.files = {"org/repo/m.gguf": BIG}
    with pytest.raises(catalog.ModelNotFound, match="org/none"):
        Hub().files("org/none")
    with pytest.raises(catalog.ModelNotFound):
        Hub().files("org/repo", "v9")
    with pytest.raises(catalog.ModelNotFound):
        Hub().files("../etc")


def test_private_repository_is_told_from_a_missing_one_only_with_a_token(
    hub_server: HubServer,
) -> None:
    hub_server.files = {"org/private/m.gguf": BIG}
    hub_server.private = {"org/private"}
    for name in ("org/private", "org/none"):
        with pytest.raises(
            catalog.ModelNotFound, match=rf"{name}: .* private or gated, set HF_TOKEN"
        ):
            Hub().files(name)
        with pytest.raises(catalog.ModelNotFound, match="no such repository, revision or file"):
            Hub(token="hf_other").files(name)
    assert Hub(token="hf_secret").files("org/private")


def test_repository_has_the_hubs_name_however_it_was_typed(hub_server: HubServer) -> None:
    hub_server.files = {"Org/Repo-GGUF/m.gguf": BIG}
    names = ("org/repo-gguf", "ORG/REPO-GGUF", "Org/Repo-GGUF", "old/name")
    hub_server.renamed = dict.fromkeys(map(str.lower, names), "Org/Repo-GGUF")
    for name in names:
        hub = Hub()
        (file,) = hub.find(catalog.resolve(f"hf:{name}"))
        assert file.repository == "Org/Repo-GGUF"
        assert hub.header(file, 10) == BIG[:10]


def test_name_in_a_listing_that_nobody_asked_for_is_ignored(
    hub_server: HubServer, monkeypatch
) -> None:
    hub_server.files = {"org/repo/m.gguf": BIG}
    listing = hub_server.listing("org/repo")
    for id, expected in {
        "ORG/Repo": "ORG/Repo",
        "evil/other": "org/repo",
        "..": "org/repo",
    }.items():
        monkeypatch.setattr(hub_server, "listing", lambda _, id=id: {**(listing or {}), "id": id})
        assert Hub().files("org/repo")[0].repository == expected


def test_listing_is_asked_for_once(hub_server: HubServer) -> None:
    hub_server.files = {"org/repo/m.gguf": BIG}
    hub = Hub()
    first, again = hub.files("org/repo"), hub.files("org/repo")
    assert first == again and len(hub_server.requests) == 1
    hub.files("org/repo", COMMIT)
    assert len(hub_server.requests) == 2


def test_gated_repository_is_explained(hub_server: HubServer) -> None:
    hub_server.files = {"org/gated/m.gguf": BIG}
    hub_server.gated = {"org/gated"}
    page = f"{hub_server.url}/org/gated"
    with pytest.raises(
        catalog.AccessDenied, match=f"accept its terms at {page}, then set HF_TOKEN"
    ):
        Hub().files("org/gated")
    with pytest.raises(catalog.AccessDenied, match=f"has no access; request access at {page}"):
        Hub(token="hf_other").files("org/gated")
    assert Hub(token="hf_secret").files("org/gated")


def test_storage_that_refuses_is_asked_again(hub_server: HubServer) -> None:
    hub_server.files = {"org/repo/m.gguf": BIG}
    hub_server.faults = [Fault("status", 403)]  # as where a signed link has run out
    hub = Hub(retry=ONCE)
    (file,) = hub.find(catalog.resolve("hf:org/repo"))
    with pytest.raises(TransientError, match="storage server returned HTTP 403"):
        hub.header(file, 10)


@pytest.mark.parametrize("text", ["7", "Thu, 01 Jan 1970 00:00:00 GMT", "soon", ""])
def test_server_may_say_when_as_seconds_or_as_a_date(hub_server: HubServer, text: str) -> None:
    hub_server.files = {"org/repo/m.gguf": BIG}
    hub_server.faults = [Fault("status", 429, {"Retry_After": text})]
    hub = Hub(retry=ONCE)
    (file,) = hub.find(catalog.resolve("hf:org/repo"))
    with pytest.raises(TransientError) as caught:
        hub.header(file, 10)
    assert caught.value.retry_after_s == {"7": 7, "soon": None, "": None}.get(text, 0)


def test_token_of_the_environment_is_sent(hub_server: HubServer, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub_server.files = {"org/gated/m.gguf": BIG}
    hub_server.gated = {"org/gated"}
    assert Hub().files("org/gated")


def test_second_host_never_sees_the_token(hub_server: HubServer) -> None:
    hub_server.files = {"org/repo/m.gguf": BIG}
    hub = Hub(token="hf_secret")
    (file,) = hub.find(catalog.resolve("hf:org/repo"))
    hub.header(file, 10)
    assert all(r.headers["authorization"] == "Bearer hf_secret" for r in hub_server.sent_to("hub"))
    (request,) = hub_server.sent_to("storage")
    assert "authorization" not in request.headers
    assert "hf_secret" not in str(request)


def test_nothing_but_the_file_is_asked_of_the_hub(hub_server: HubServer) -> None:
    hub_server.files = {"org/repo/m.gguf": BIG}
    hub = Hub()
    (file,) = hub.find(catalog.resolve("hf:org/repo"))
    hub.header(file, 10)
    assert [r.path for r in hub_server.sent_to("hub")] == [
        "/api/models/org/repo?blobs=true",
        f"/org/repo/resolve/{COMMIT}/m.gguf",
    ]


def test_redirect_loop_and_downgrade_are_refused(hub_server: HubServer) -> None:
    hub_server.files = {"org/repo/m.gguf": BIG}
    hub_server.redirect = "loop"
    hub = Hub()
    (file,) = hub.find(catalog.resolve("hf:org/repo"))
    with pytest.raises(catalog.HubUnreachable, match="more than 5 redirects"):
        hub.header(file, 10)
    here = httpx2.URL("https://a/x")
    assert _next_url(here, "/y", "m") == "https://a/y"
    with pytest.raises(catalog.HubUnreachable, match="refused a redirect from https to http"):
        _next_url(here, "http://a/x", "m")


def test_no_server_is_unreachable() -> None:
    with socket.socket() as unused:  # bound but not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        hub = Hub(endpoint=f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(catalog.HubUnreachable):
            hub.files("org/repo")


def test_offline_mode_opens_no_socket(hub_server: HubServer, monkeypatch) -> None:
    with pytest.raises(catalog.HubUnreachable, match="offline"):
        Hub(offline=True).files("org/repo")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(catalog.HubUnreachable, match="offline"):
        Hub().files("org/repo")
    assert hub_server.requests == []


def test_busy_server_says_when_to_come_back(hub_server: HubServer) -> None:
    hub_server.files = {"org/repo/m.gguf": BIG}
    hub_server.faults = [Fault("status", 503, {"Retry_After": "7"})]
    hub = Hub(retry=ONCE)
    (file,) = hub.find(catalog.resolve("hf:org/repo"))
    with pytest.raises(TransientError, match="storage server returned HTTP 503") as caught:
        hub.header(file, 10)
    assert caught.value.retry_after_s == 7


def test_answer_that_is_no_listing_is_unreachable(hub_server: HubServer, monkeypatch) -> None:
    hub_server.files = {"org/repo/m.gguf": BIG}
    monkeypatch.setattr(hub_server, "listing", lambda repository: ["captive portal"])
    with pytest.raises(catalog.HubUnreachable, match="not a JSON file listing"):
        Hub().files("org/repo")


@pytest.mark.parametrize("endpoint", ["http://[::bad", "http://127.0.0.1:99999", "ftp://a", "hub"])
def test_endpoint_that_is_no_address_is_named(endpoint: str) -> None:
    with pytest.raises(catalog.BadSetting, match="HF_ENDPOINT"):
        Hub(endpoint=endpoint)


@pytest.mark.parametrize(
    ("name", "value"),
    [("HTTPS_PROXY", "foo://x:1"), ("SSL_CERT_FILE", "/nonexistent/certificates")],
)
def test_client_that_cannot_be_set_up_is_a_bad_setting(
    hub_server: HubServer, monkeypatch, name: str, value: str
) -> None:
    close_session()
    monkeypatch.setenv(name, value)
    with pytest.raises(catalog.BadSetting, match=name):
        Hub().files("org/repo")
    assert hub_server.requests == []


def test_missing_package_for_a_proxy_is_a_bad_setting(hub_server: HubServer, monkeypatch) -> None:
    def session() -> None:
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed")

    monkeypatch.setattr("huggingface_hub.get_session", session)
    with pytest.raises(catalog.BadSetting, match=r"HTTPS_PROXY.*socksio"):
        Hub().files("org/repo")


def test_token_that_cannot_be_sent_is_a_bad_setting(
    hub_server: HubServer, monkeypatch, tmp_path
) -> None:
    file = tmp_path / "token"
    file.write_bytes(b"\xff\xfe")
    for path in (file, tmp_path):
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(path))
        with pytest.raises(catalog.BadSetting, match="HF_TOKEN_PATH"):
            Hub()
    monkeypatch.setenv("HF_TOKEN", "é")
    with pytest.raises(catalog.BadSetting, match="HF_TOKEN"):
        Hub()


def test_number_that_is_none_is_a_bad_setting(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "soon")
    monkeypatch.delitem(sys.modules, "huggingface_hub.constants")
    monkeypatch.delattr("huggingface_hub.constants")
    with pytest.raises(catalog.BadSetting, match=r"HF_.* must be a number, got 'soon'"):
        cache_folder()
