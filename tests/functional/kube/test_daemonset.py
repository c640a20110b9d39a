"""The DaemonSet lookup, against HTTPS servers that answer, refuse, stall and misbehave."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import kubernetes
from tests.support.kubernetes import (
    DAEMONSET,
    GONE,
    POD,
    TOKEN,
    Api,
    Certificates,
    Speech,
    daemonset,
    object_of,
    owner,
    pod,
    serving,
    status_of,
)
from toolkit.kube import apiserver
from toolkit.kube import daemonset as cluster
from toolkit.kube.daemonset import DaemonSetState, Lookup


def hear(client: socket.socket) -> bytes:
    """Take a request."""
    heard = b""
    while not heard.endswith(b"\r\n\r\n"):
        more = client.recv(65536)
        if not more:
            raise ConnectionResetError
        heard += more
    return heard


def until_hung_up(client: socket.socket) -> None:
    while client.recv(65536):
        pass


def saying(data: bytes) -> Speech:
    """Say some bytes after the request, and hang up."""

    def speech(client: socket.socket) -> None:
        hear(client)
        client.sendall(data)

    return speech


# The one who asks


@dataclass(frozen=True, slots=True)
class Asker:
    account: Path
    certificate: Path

    def ask(
        self,
        speech: Speech,
        name: str = "toolkit",
        *,
        timeout: float = 10,
        pod: str = "toolkit-x7k2p",
    ) -> Lookup:
        """Ask a server with the good certificate; ports are cut out of what is said."""
        with serving(speech, self.certificate) as port:
            return self.at(port, name, timeout=timeout, POD_NAME=pod)

    def at(
        self,
        port: int,
        name: str = "toolkit",
        *,
        host: str = "127.0.0.1",
        timeout: float = 10,
        **more: str,
    ) -> Lookup:
        environment = {
            "KUBERNETES_SERVICE_HOST": host,
            "KUBERNETES_SERVICE_PORT": str(port),
        } | more
        verdict = cluster.look_up(
            name, timeout=timeout, environment=environment, account=self.account
        )
        assert TOKEN not in verdict.why
        assert "\n" not in verdict.why
        return Lookup(state=verdict.state, why=verdict.why.replace(f":{port}", ""))

    def bound(
        self, speech: Speech, certificate: Path | None, why: str = f"GET {DAEMONSET} within 0.5 s"
    ) -> None:
        """Ask with a timeout of half a second; the server's answer never ends."""
        with serving(speech, certificate) as port:
            begun = time.monotonic()
            verdict = self.at(port, timeout=0.5)
            took = time.monotonic() - begun
        assert verdict == unknown(f"127.0.0.1 does not answer {why}")
        assert took > 0.45


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait long between two attempts."""
    monkeypatch.setattr(cluster, "PAUSES", (0.001, 0.001, 0.001))


@pytest.fixture
def asker(account: Path, certificates: Certificates) -> Asker:
    return Asker(account, certificates.good)


def unknown(why: str) -> Lookup:
    return Lookup(state=DaemonSetState.UNKNOWN, why=why)


def stays(why: str) -> Lookup:
    return Lookup(state=DaemonSetState.PRESENT, why=f"the DaemonSet gpu/toolkit {why}")


def leaves(why: str) -> Lookup:
    return Lookup(state=DaemonSetState.DELETED, why=f"the DaemonSet gpu/toolkit {why}")


# With the DaemonSet's name


DELETED: Final = {"deletionTimestamp": "2026-02-03T10:11:12Z", "deletionGracePeriodSeconds": 0}


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        pytest.param((200, daemonset()), stays("exists"), id="there"),
        pytest.param(
            (200, daemonset(deletionTimestamp=None)), stays("exists"), id="there, with a null"
        ),
        pytest.param((200, daemonset(**DELETED)), leaves("is being deleted"), id="being deleted"),
        pytest.param(
            (200, daemonset(**DELETED, finalizers=["foregroundDeletion"])),
            leaves("is being deleted"),
            id="being deleted in the foreground",
        ),
        pytest.param(
            (200, daemonset(**DELETED, finalizers=["orphan"])),
            stays("is being deleted without its pods"),
            id="orphaning",
        ),
        pytest.param(GONE, leaves("is gone"), id="gone"),
    ],
)
def test_what_the_api_says(asker: Asker, answer: tuple[int, object], verdict: Lookup) -> None:
    api = Api({DAEMONSET: answer})
    assert asker.ask(api) == verdict
    ((path, headers),) = api.asked
    assert path == DAEMONSET
    assert headers.pop("Host").startswith("127.0.0.1:")
    assert headers == {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Authorization": f"Bearer {TOKEN}",
        "Connection": "close",
    }


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (401, "401 Unauthorized"),
        (403, "403 Forbidden"),
        (410, "410 Gone"),
        (204, "204 No Content"),
        (299, "299"),
    ],
)
def test_another_status_is_no_answer(asker: Asker, code: int, why: str) -> None:
    # Even in the words that say that it is gone.
    body = b"" if code == 204 else status_of(code, "NotFound")
    assert asker.ask(Api({DAEMONSET: (code, body)})) == unknown(
        f"127.0.0.1 answers GET {DAEMONSET} with {why}"
    )


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_server_that_has_too_much_to_do_is_asked_at_most_four_times(
    asker: Asker, code: int
) -> None:
    api = Api({DAEMONSET: (code, status_of(code, "NotFound"))})
    phrase = http.client.responses[code]
    assert asker.ask(api) == unknown(
        f"127.0.0.1 answers GET {DAEMONSET} with {code} {phrase} (4 attempts)"
    )
    assert [path for path, _ in api.asked] == [DAEMONSET] * 4


@pytest.mark.parametrize("attempts", [2, 3, 4])
@pytest.mark.parametrize("failure", ["a status", "a broken connection"])
def test_an_outage_that_passes_in_time_is_no_lack_of_an_answer(
    asker: Asker, failure: str, attempts: int
) -> None:
    asked = 0
    down, up = Api({DAEMONSET: (503, status_of(503, "ServiceUnavailable"))}), Api({DAEMONSET: GONE})

    def speech(client: socket.socket) -> None:
        nonlocal asked
        asked += 1
        if asked == attempts:
            up(client)
        elif failure == "a status":
            down(client)
        else:
            hear(client)

    assert asker.ask(speech) == leaves("is gone")
    assert asked == attempts


def test_a_server_that_ends_in_the_handshake_is_asked_again(asker: Asker) -> None:
    asked = 0
    trust = kubernetes.context(asker.certificate)

    def speech(client: socket.socket) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            client.recv(65536)
            return
        with trust.wrap_socket(client, server_side=True) as secure:
            Api({DAEMONSET: GONE})(secure)

    with serving(speech, None) as port:
        assert asker.at(port) == leaves("is gone")
    assert asked == 2


def test_both_requests_are_repeated_together(asker: Asker) -> None:
    api = Api({POD: (200, pod(owner())), DAEMONSET: (503, b"")})
    assert asker.ask(api, "").state is DaemonSetState.UNKNOWN
    assert [path for path, _ in api.asked] == [POD, DAEMONSET] * 4


def test_a_pause_that_would_end_after_the_deadline_is_not_begun(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PAUSES", (60.0, 60.0, 60.0))
    api = Api({DAEMONSET: (503, b"")})
    assert asker.ask(api, timeout=20) == unknown(
        f"127.0.0.1 answers GET {DAEMONSET} with 503 Service Unavailable"
    )
    assert len(api.asked) == 1


def test_pauses_grow_and_those_of_two_pods_differ() -> None:
    """The pods of many nodes are refused at the same moment when an API server goes down."""
    api = apiserver.Api(
        host="10.0.0.1", port=443, namespace="gpu", token=TOKEN,
        context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), timeout=5, deadline=float("inf"),
    )  # fmt: skip
    waited: list[list[float]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "PAUSES", (0.5, 1.0, 2.0))
        for _ in range(100):
            slept: list[float] = []
            patch.setattr(time, "sleep", slept.append)
            attempts = 1
            while cluster._pause(api, attempts):
                attempts += 1
            waited.append(slept)
    assert {len(slept) for slept in waited} == {3}
    for index, usual in enumerate((0.5, 1.0, 2.0)):
        each = sorted(slept[index] for slept in waited)
        assert usual * 0.5 <= each[0] < usual * 0.8
        assert usual * 1.2 < each[-1] <= usual * 1.5


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"<html><h1>404 Not Found</h1></html>", id="html"),
        pytest.param(b"404 page not found\n", id="plain"),
        pytest.param(b"", id="empty"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param([], id="a list"),
        pytest.param(status_of(404, "NotFound") | {"kind": "Error"}, id="no Status"),
        pytest.param(status_of(404, "Expired"), id="another reason"),
        pytest.param(status_of(404, "NotFound") | {"details": {}}, id="no details"),
        pytest.param(status_of(404, "NotFound") | {"details": None}, id="null details"),
        pytest.param(status_of(404, "NotFound", name="other"), id="another name"),
        pytest.param(status_of(404, "NotFound", resource="namespaces"), id="another resource"),
    ],
)
def test_a_404_of_something_else_is_no_answer(asker: Asker, body: object) -> None:
    assert asker.ask(Api({DAEMONSET: (404, body)})) == unknown(
        f"127.0.0.1 answers GET {DAEMONSET} with a 404 that is not about the DaemonSet gpu/toolkit"
    )


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="torn"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"1" * 100_000, id="a long number"),
        pytest.param(b"null", id="null"),
        pytest.param({}, id="nothing"),
        pytest.param({"kind": "DaemonSet", "metadata": []}, id="no metadata"),
        pytest.param(status_of(404, "NotFound"), id="gone, with 200"),
        pytest.param(object_of("Deployment", "toolkit", **DELETED), id="another kind"),
        pytest.param(object_of("DaemonSet", "other", **DELETED), id="another name"),
        pytest.param(daemonset(namespace="other", **DELETED), id="another namespace"),
        pytest.param(daemonset(uid=None, **DELETED), id="no uid"),
    ],
)
def test_something_else_is_no_answer(asker: Asker, body: object) -> None:
    assert asker.ask(Api({DAEMONSET: (200, body)})) == unknown(
        f"127.0.0.1 answers GET {DAEMONSET} with something other than the requested object"
    )


@pytest.mark.parametrize(
    ("code", "name"), [(301, "Moved Permanently"), (307, "Temporary Redirect")]
)
def test_redirects_are_not_followed(asker: Asker, code: int, name: str) -> None:
    api = Api({DAEMONSET: (code, b""), "/gone": GONE}, headers={"Location": "/gone"})
    assert asker.ask(api) == unknown(f"127.0.0.1 answers GET {DAEMONSET} with {code} {name}")
    assert len(api.asked) == 1


def test_an_answer_may_be_large_but_not_too_large(asker: Asker) -> None:
    room = (1 << 20) - len(json.dumps(daemonset(x="")))
    assert asker.ask(Api({DAEMONSET: (200, daemonset(x="x" * room))})) == stays("exists")
    too_large = unknown(f"127.0.0.1 answers GET {DAEMONSET} with more than 1048576 bytes")
    assert asker.ask(Api({DAEMONSET: (200, daemonset(x="x" * (room + 1)))})) == too_large


def test_an_answer_without_an_end_is_too_large(asker: Asker) -> None:
    def speech(client: socket.socket) -> None:
        hear(client)
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            client.sendall(b" " * 65536)

    assert asker.ask(speech) == unknown(
        f"127.0.0.1 answers GET {DAEMONSET} with more than 1048576 bytes"
    )


@pytest.mark.parametrize("size", [b"-1", b"-5"])
def test_chunks_of_less_than_nothing(asker: Asker, size: bytes) -> None:
    """http.client reads one of -1 bytes until the end of the connection, whatever that costs."""

    def speech(client: socket.socket) -> None:
        hear(client)
        client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\n")
        while True:
            client.sendall(b" " * 65536)

    with serving(speech, asker.certificate) as port:
        verdict = asker.at(port, timeout=20)
    assert verdict.state is DaemonSetState.UNKNOWN
    assert f"does not answer GET {DAEMONSET}" in verdict.why
    assert "within" not in verdict.why


def test_an_answer_in_chunks(asker: Asker) -> None:
    body = json.dumps(daemonset()).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:]))
    begun = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    assert asker.ask(saying(begun + b"0\r\n\r\n")) == stays("exists")
    assert asker.ask(saying(begun)) == unknown(
        f"127.0.0.1 does not answer GET {DAEMONSET} in HTTP: IncompleteRead"
    )


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "RemoteDisconnected (4 attempts)"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "BadStatusLine"),
        (b"HTTP/9.9 200 OK\r\n\r\n", "UnknownProtocol"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "LineTooLong"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200, "HTTPException"),
    ],
)
def test_what_is_no_http_is_no_answer(asker: Asker, said: bytes, why: str) -> None:
    assert asker.ask(saying(said)) == unknown(
        f"127.0.0.1 does not answer GET {DAEMONSET} in HTTP: {why}"
    )


def test_a_torn_answer_is_no_answer(asker: Asker) -> None:
    body = json.dumps(daemonset(**DELETED)).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    for length in (0, 1, len(body) // 2, len(body) - 1):
        assert asker.ask(saying(head + body[:length])).state is DaemonSetState.UNKNOWN
    assert asker.ask(saying(head + body)) == leaves("is being deleted")


def test_a_server_that_repeats_all_it_hears_gets_no_token_into_the_log(asker: Asker) -> None:
    def speech(client: socket.socket) -> None:
        heard = hear(client).replace(b"\r\n", b" ").strip()
        client.sendall(b"HTTP/1.1 500 %b\r\nContent-Length: 0\r\n\r\n" % heard)

    def junk(client: socket.socket) -> None:
        client.sendall(hear(client).partition(b"Authorization: ")[2])

    # `at` looks for the token.
    assert asker.ask(speech) == unknown(
        f"127.0.0.1 answers GET {DAEMONSET} with 500 Internal Server Error (4 attempts)"
    )
    assert asker.ask(junk) == unknown(
        f"127.0.0.1 does not answer GET {DAEMONSET} in HTTP: BadStatusLine"
    )


# Without its name


def test_the_owner_is_found(asker: Asker) -> None:
    api = Api(
        {
            POD: (200, pod(owner(kind="Node", controller=False), owner())),
            DAEMONSET: (200, daemonset()),
        }
    )
    assert asker.ask(api, "") == stays("exists")
    assert [path for path, _ in api.asked] == [POD, DAEMONSET]
    assert {headers["Authorization"] for _, headers in api.asked} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        pytest.param(GONE, leaves("is gone"), id="gone"),
        pytest.param((200, daemonset(**DELETED)), leaves("is being deleted"), id="being deleted"),
        pytest.param((200, daemonset(uid="another")), stays("was recreated"), id="made anew"),
        pytest.param(
            (403, status_of(403, "Forbidden")),
            unknown(f"127.0.0.1 answers GET {DAEMONSET} with 403 Forbidden"),
            id="forbidden",
        ),
    ],
)
def test_what_the_api_says_of_the_owner(
    asker: Asker, answer: tuple[int, object], verdict: Lookup
) -> None:
    assert asker.ask(Api({POD: (200, pod(owner())), DAEMONSET: answer}), "") == verdict


@pytest.mark.parametrize(
    "owners",
    [
        pytest.param([], id="none"),
        pytest.param([owner(controller=False)], id="no controller"),
        pytest.param([owner(controller="true")], id="a controller in words"),
        pytest.param([owner(kind="Job")], id="a Job"),
        pytest.param([owner(uid=None)], id="no uid"),
        pytest.param([owner(name=None)], id="no name"),
        pytest.param([None, 1, "x", []], id="nonsense"),
    ],
)
def test_a_pod_of_no_daemonset(asker: Asker, owners: list[object]) -> None:
    assert asker.ask(Api({POD: (200, pod(*owners))}), "") == unknown(
        "the pod gpu/toolkit-x7k2p does not belong to a DaemonSet"
    )


@pytest.mark.parametrize("references", [None, 1, {}, "x"])
def test_owners_that_are_no_list(asker: Asker, references: object) -> None:
    answer = object_of("Pod", "toolkit-x7k2p", ownerReferences=references)
    assert asker.ask(Api({POD: (200, answer)}), "") == unknown(
        "the pod gpu/toolkit-x7k2p does not belong to a DaemonSet"
    )


@pytest.mark.parametrize(
    ("daemonset", "pod", "is_ours"),
    [
        ("toolkit", "toolkit-x7k2p", True),
        ("nvidia-toolkit", "nvidia-toolkit-x7k2p", True),
        ("nvidia", "nvidia-toolkit-x7k2p", False),
        ("mistaken", "toolkit-x7k2p", False),
        ("toolkit", "toolkit-node1", False),  # no controller uses vowels and ones
        ("toolkit", "toolkit", False),
        ("toolkit", "toolkit-x7k2p\n", False),
        ("toolkit", "", False),
        ("", "-x7k2p", False),
    ],
)
def test_whose_a_pod_is_by_its_name(daemonset: str, pod: str, *, is_ours: bool) -> None:
    assert cluster.is_own(daemonset, {"POD_NAME": pod}) is is_ours
    assert cluster.is_own(daemonset, {"HOSTNAME": pod}) is is_ours


def test_a_pod_that_is_not_there_says_nothing_of_its_daemonset(asker: Asker) -> None:
    gone = status_of(404, "NotFound", name="toolkit-x7k2p", resource="pods")
    assert asker.ask(Api({POD: (404, gone)}), "") == unknown(
        f"127.0.0.1 answers GET {POD} with 404 Not Found"
    )


@pytest.mark.parametrize(
    ("code", "name"),
    [(401, "Unauthorized"), (403, "Forbidden"), (500, "Internal Server Error (4 attempts)")],
)
def test_a_pod_that_may_not_be_seen(asker: Asker, code: int, name: str) -> None:
    assert asker.ask(Api({POD: (code, b"")}), "") == unknown(
        f"127.0.0.1 answers GET {POD} with {code} {name}"
    )


def test_the_pod_is_named_by_its_host_name_at_last(asker: Asker) -> None:
    api = Api({POD: (200, pod(owner())), DAEMONSET: GONE})
    with serving(api, asker.certificate) as port:
        assert asker.at(port, "", HOSTNAME="toolkit-x7k2p") == leaves("is gone")
        assert asker.at(port, "", POD_NAME="", HOSTNAME="toolkit-x7k2p") == leaves("is gone")
        assert asker.at(port, "", POD_NAME="toolkit-x7k2p", HOSTNAME="node") == leaves("is gone")
        assert asker.at(port, "") == unknown("'' is not a valid Kubernetes name")


# Names


BAD_NAMES: Final = (
    "..", "a/b", "../../pods/x", "a?b", "a b", "a%2fb", "A", "-a", "a-", "a..b", "ä", "a\n",
    "a\r\nX: y", "x" * 254,
)  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_name_is_not_asked_for(asker: Asker, name: str) -> None:
    refused = unknown(f"{name[:80]!r} is not a valid Kubernetes name")
    assert asker.ask(nobody, name) == refused
    assert asker.ask(nobody, "", pod=name) == refused
    api = Api({POD: (200, pod(owner(name=name)))})
    assert asker.ask(api, "") == refused
    (asker.account / "namespace").write_text(f"x{name}/", encoding="utf-8")
    assert asker.ask(nobody).state is DaemonSetState.UNKNOWN


def nobody(client: socket.socket) -> None:
    raise AssertionError(client)


@pytest.mark.parametrize("name", ["a", "0", "a.b-c.d", "x" * 253])
def test_names(asker: Asker, name: str) -> None:
    answer = (404, status_of(404, "NotFound", name=name))
    api = Api({f"/apis/apps/v1/namespaces/gpu/daemonsets/{name}": answer})
    assert asker.ask(api, name).why == f"the DaemonSet gpu/{name} is gone"


# The service account


@pytest.mark.parametrize("part", ["token", "ca.crt", "namespace"])
def test_half_an_account(asker: Asker, part: str) -> None:
    path = asker.account / part
    path.unlink()
    assert asker.ask(nobody) == unknown(
        f"cannot read the service account: {path}: No such file or directory"
    )
    path.mkdir()
    assert asker.ask(nobody).state is DaemonSetState.UNKNOWN


def test_no_account(asker: Asker) -> None:
    shutil.rmtree(asker.account)
    assert asker.ask(nobody).state is DaemonSetState.UNKNOWN


@pytest.mark.parametrize(
    "content", [b"", b" \n", TOKEN.encode() + b"\nX-More: 1", TOKEN.encode() + "ü".encode()]
)
def test_a_token_that_is_none(asker: Asker, content: bytes) -> None:
    (asker.account / "token").write_bytes(content)
    assert asker.ask(nobody) == unknown(f"{asker.account}/token does not contain a token")


@pytest.mark.parametrize("part", ["token", "namespace"])
def test_parts_that_are_no_text(asker: Asker, part: str) -> None:
    (asker.account / part).write_bytes(TOKEN.encode() + b"\xff")
    assert asker.ask(nobody) == unknown(f"{asker.account}/{part} is not UTF-8 text")


@pytest.mark.parametrize(
    "content", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_an_authority_that_is_none(asker: Asker, content: bytes) -> None:
    (asker.account / "ca.crt").write_bytes(content)
    assert asker.ask(nobody) == unknown(f"{asker.account}/ca.crt does not contain a certificate")


def test_white_space_around_the_parts_is_no_part_of_them(asker: Asker) -> None:
    for part, content in (("token", TOKEN), ("namespace", "gpu")):
        (asker.account / part).write_text(f"\n{content}\n", encoding="utf-8")
    api = Api({DAEMONSET: GONE})
    assert asker.ask(api) == leaves("is gone")
    assert api.asked[0][1]["Authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("", ""), ("10.0.0.1", ""), ("", "443"), ("10.0.0.1", "https"), ("10.0.0.1", "0"),
        ("10.0.0.1", "65536"), ("10.0.0.1", "²"), ("10.0.0.1", "-1"), ("a b", "443"),
        ("a/b", "443"), ("a\r\nb", "443"), ("[::1]", "443"),
    ],
)  # fmt: skip
def test_no_address(account: Path, host: str, port: str) -> None:
    environment = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    assert cluster.look_up(
        "toolkit", timeout=5, environment=environment, account=account
    ) == unknown(f"KUBERNETES_SERVICE_HOST and _PORT are not set or not valid: {host!r}, {port!r}")


def test_nothing_at_all(tmp_path: Path) -> None:
    assert cluster.look_up("toolkit", timeout=5, environment={}, account=tmp_path) == unknown(
        "KUBERNETES_SERVICE_HOST and _PORT are not set or not valid: '', ''"
    )


@pytest.mark.parametrize("host", [".", "a..b", "x" * 64, "-", ":", "256.1.1.1", "1:2"])
def test_strange_hosts(asker: Asker, host: str) -> None:
    verdict = asker.at(443, host=host)
    assert verdict.state is DaemonSetState.UNKNOWN
    assert f"does not answer GET {DAEMONSET}: " in verdict.why


def test_the_https_port_is_preferred(asker: Asker) -> None:
    with serving(Api({DAEMONSET: GONE}), asker.certificate) as port:
        assert asker.at(1, KUBERNETES_SERVICE_PORT_HTTPS=str(port)) == leaves("is gone")


def test_a_name_of_the_host(asker: Asker) -> None:
    with serving(Api({DAEMONSET: GONE}), asker.certificate) as port:
        assert asker.at(port, host="localhost") == leaves("is gone")


def test_ipv6(asker: Asker) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"there is no IPv6 here: {error}")
    api = Api({DAEMONSET: GONE})
    with serving(api, asker.certificate, host="::1") as port:
        assert asker.at(port, host="::1") == leaves("is gone")
        assert api.asked[0][1]["Host"] == f"[::1]:{port}"
    assert asker.at(port, host="::1") == unknown(
        f"[::1] does not answer GET {DAEMONSET}: [Errno 111] Connection refused (4 attempts)"
    )


def test_the_proxy_of_the_environment_is_not_asked(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    assert asker.ask(Api({DAEMONSET: GONE})) == leaves("is gone")


# Who answers


def test_a_server_of_another_authority(asker: Asker, certificates: Certificates) -> None:
    with serving(nobody, certificates.by_another) as port:
        assert asker.at(port) == unknown(
            "127.0.0.1: certificate verification failed: unable to get local issuer certificate"
        )


def test_a_server_of_another_name(asker: Asker, certificates: Certificates) -> None:
    with serving(nobody, certificates.of_another) as port:
        assert asker.at(port) == unknown(
            "127.0.0.1: certificate verification failed: IP address mismatch,"
            " certificate is not valid for '127.0.0.1'."
        )
        assert asker.at(port, host="localhost") == unknown(
            "localhost: certificate verification failed: Hostname mismatch,"
            " certificate is not valid for 'localhost'."
        )


def test_an_authority_below_another_is_trusted_alone(
    asker: Asker, certificates: Certificates
) -> None:
    shutil.copy(certificates.below.path, asker.account / "ca.crt")
    with serving(Api({DAEMONSET: GONE}), certificates.by_below) as port:
        assert asker.at(port) == leaves("is gone")
    with serving(nobody, certificates.good) as port:
        assert asker.at(port) == unknown(
            "127.0.0.1: certificate verification failed: unable to get local issuer certificate"
        )


def test_a_server_without_tls(asker: Asker) -> None:
    with serving(lambda client: client.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n"), None) as port:
        verdict = asker.at(port)
    assert verdict.state is DaemonSetState.UNKNOWN
    assert verdict.why.startswith(f"127.0.0.1 does not answer GET {DAEMONSET}: [SSL: ")


def test_nobody_listens(asker: Asker) -> None:
    with serving(nobody, None) as port:
        pass
    assert asker.at(port) == unknown(
        f"127.0.0.1 does not answer GET {DAEMONSET}: [Errno 111] Connection refused (4 attempts)"
    )


# How long it takes


def dripping(data: bytes) -> Speech:
    """Say something after the request, one byte at a time, each in time."""

    def speech(client: socket.socket) -> None:
        hear(client)
        for byte in data:
            client.sendall(bytes([byte]))
            time.sleep(0.05)

    return speech


def begun(data: bytes) -> Speech:
    """Say something after the request, and then nothing."""

    def speech(client: socket.socket) -> None:
        hear(client)
        client.sendall(data)
        until_hung_up(client)

    return speech


HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
CHUNKED: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "speech",
    [
        pytest.param(until_hung_up, id="nothing"),
        pytest.param(begun(b"HTTP/1.1 2"), id="half a status"),
        pytest.param(begun(b"HTTP/1.1 200 OK\r\nX-Y: "), id="half a header"),
        pytest.param(begun(HEAD), id="no body"),
        pytest.param(begun(HEAD + b" " * 999), id="nearly a body"),
        pytest.param(begun(b"HTTP/1.1 200 OK\r\n\r\n{}"), id="a body without an end"),
        pytest.param(begun(CHUNKED + b"2\r\n{}\r\n"), id="half the chunks"),
        pytest.param(begun(b"HTTP/1.1 100 Continue\r\n\r\n"), id="continue"),
        pytest.param(dripping(HEAD * 10), id="a dripping head"),
        pytest.param(dripping(b"HTTP/1.1 100 Continue\r\n\r\n" * 10), id="dripping continues"),
    ],
)  # fmt: skip
def test_a_server_that_takes_its_time(asker: Asker, speech: Speech) -> None:
    asker.bound(speech, asker.certificate)


def test_a_dripping_body(asker: Asker) -> None:
    def speech(client: socket.socket) -> None:
        hear(client)
        client.sendall(HEAD)
        while True:
            client.sendall(b" ")
            time.sleep(0.02)

    asker.bound(speech, asker.certificate)


def test_a_server_that_continues_for_ever(asker: Asker) -> None:
    def speech(client: socket.socket) -> None:
        hear(client)
        while True:
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    # Python 3.14 takes no more than a hundred of them.
    with serving(speech, asker.certificate) as port:
        verdict = asker.at(port, timeout=0.5)
    ends = (
        " within 0.5 s",
        " in HTTP: HTTPException",
        ": the response is larger than 2097152 bytes",
    )
    assert verdict in [unknown(f"127.0.0.1 does not answer GET {DAEMONSET}{end}") for end in ends]


def test_a_server_that_never_shakes_hands(asker: Asker) -> None:
    asker.bound(until_hung_up, None)


class SlowWire:
    """A server whose TLS itself comes byte by byte, after some flights that do not."""

    def __init__(self, client: socket.socket, certificate: Path, *, quick: int) -> None:
        self.client = client
        self.heard, self.said = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = kubernetes.context(certificate).wrap_bio(self.heard, self.said, server_side=True)
        self.quick = quick

    def step(self, act: Callable[[], object]) -> None:
        while True:
            try:
                act()
            except ssl.SSLWantReadError:
                self.flush()
                data = self.client.recv(65536)
                if not data:
                    raise ConnectionResetError from None
                self.heard.write(data)
            else:
                return self.flush()

    def flush(self) -> None:
        data = self.said.read()
        if not data:
            return
        if self.quick:
            self.quick -= 1
            self.client.sendall(data)
            return
        for byte in data:
            self.client.sendall(bytes([byte]))
            time.sleep(0.02)


@pytest.mark.parametrize(
    "quick", [pytest.param(0, id="the handshake"), pytest.param(2, id="the answer")]
)
def test_dripping_records(asker: Asker, quick: int) -> None:
    heard: list[bytes] = []

    def speech(client: socket.socket) -> None:
        server = SlowWire(client, asker.certificate, quick=quick)
        server.step(server.tls.do_handshake)
        server.step(lambda: heard.append(server.tls.read(65536)))
        server.step(lambda: server.tls.write(HEAD + b" " * 1000))

    asker.bound(speech, None)
    assert len(heard) == (quick > 0)


@pytest.mark.timing
def test_nobody_takes_the_connection(asker: Asker) -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as listener,
        contextlib.ExitStack() as crowd,
    ):
        port = listener.getsockname()[1]
        for _ in range(4):
            one = crowd.enter_context(socket.socket())
            one.settimeout(0)
            one.connect_ex(("127.0.0.1", port))
        begun_at = time.monotonic()
        verdict = asker.at(port, timeout=0.5)
        took = time.monotonic() - begun_at
    assert verdict == unknown(f"127.0.0.1 does not answer GET {DAEMONSET} within 0.5 s")
    assert 0.45 < took < 2


@pytest.mark.timing
def test_both_questions_share_the_time(asker: Asker) -> None:
    api = Api({POD: (200, pod(owner()))})

    def speech(client: socket.socket) -> None:
        if api.asked:
            until_hung_up(client)
        else:
            time.sleep(1)
            api(client)

    begun_at = time.monotonic()
    verdict = asker.ask(speech, "", timeout=2)
    took = time.monotonic() - begun_at
    assert verdict == unknown(f"127.0.0.1 does not answer GET {DAEMONSET} within 2 s")
    assert 1.9 < took < 2.8


@pytest.mark.parametrize("timeout", [0, -1])
def test_no_time_at_all(asker: Asker, timeout: float) -> None:
    assert asker.ask(nobody, timeout=timeout) == unknown(
        f"127.0.0.1 does not answer GET {DAEMONSET} within {timeout} s"
    )


# Anything


WORDS = st.sampled_from(["DaemonSet", "Status", "NotFound", "daemonsets", "toolkit", "gpu"])
KEYS = st.sampled_from(
    ["kind", "metadata", "name", "namespace", "uid", "reason", "details", "ownerReferences"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | WORDS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | KEYS, inner),
)


@given(answer=JSON, status=st.sampled_from([200, 404]), name=st.sampled_from(["", "toolkit"]))
def test_only_the_two_answers_mean_that_it_leaves(answer: object, status: int, name: str) -> None:
    api = apiserver.Api(
        host="10.0.0.1", port=443, namespace="gpu", token=TOKEN,
        context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), timeout=1, deadline=0,
    )  # fmt: skip
    assert TOKEN not in repr(api)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apiserver, "find", lambda *_args, **_kinds: api)
        patch.setattr(apiserver, "get", lambda *_args: (status, answer))
        verdict = cluster.look_up(name, timeout=1, environment={"POD_NAME": "toolkit"})
    assert verdict.state is not DaemonSetState.DELETED
