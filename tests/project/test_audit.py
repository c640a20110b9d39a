"""The look for known vulnerabilities: what is not looked up is no success."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest

from tools import audit

LOCKED: Final = {"first": "1.0", "second": "2.0", "third": "3.0"}


def page(version: str, *ids: str, withdrawn: str | None = None) -> dict[str, Any]:
    known = [{"id": each, "withdrawn": withdrawn} for each in ids]
    return {"info": {"version": version}, "vulnerabilities": known}


class Index(BaseHTTPRequestHandler):
    pages: ClassVar[Mapping[str, Any]] = {}

    def do_GET(self) -> None:
        content = self.pages.get(self.path)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(404 if content is None else 200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}/api"
        made.shutdown()
        thread.join()


@pytest.fixture
def index(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for directory in ("deploy/image", "deploy/programs"):
        (tmp_path / directory).mkdir(parents=True)
    for name, (package, version) in zip(audit.LOCKS, LOCKED.items(), strict=True):
        (tmp_path / name).write_text(f"{package}=={version} \\\n    --hash=x\n", encoding="utf-8")
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    return server


GOOD: Final = {f"/api/{name}/{version}/json": page(version) for name, version in LOCKED.items()}


@pytest.mark.parametrize(
    ("pages", "code", "said"),
    [
        (GOOD, 0, "audit: 3 packages, 0 vulnerable, 0 not looked up\n"),
        (
            GOOD | {"/api/second/2.0/json": page("2.0", "PYSEC-1", "PYSEC-2")},
            1,
            "second 2.0: PYSEC-1, PYSEC-2\naudit: 3 packages, 1 vulnerable, 0 not looked up\n",
        ),
        (
            GOOD | {"/api/second/2.0/json": page("2.0", "PYSEC-1", withdrawn="2026-01-01")},
            0,
            "audit: 3 packages, 0 vulnerable, 0 not looked up\n",
        ),
        (
            GOOD | {"/api/second/2.0/json": None, "/api/second/json": page("2.0", "PYSEC-1")},
            1,
            "second 2.0: PYSEC-1\naudit: 3 packages, 1 vulnerable, 0 not looked up\n",
        ),
        (
            GOOD | {"/api/second/2.0/json": None, "/api/second/json": page("3.0")},
            3,
            (
                "second 2.0: not looked up: the index has a page for 3.0 only: run `make lock`\n"
                "audit: 3 packages, 0 vulnerable, 1 not looked up\n"
            ),
        ),
        (
            GOOD | {"/api/second/2.0/json": None},
            3,
            (
                "second 2.0: not looked up: the index does not have it\n"
                "audit: 3 packages, 0 vulnerable, 1 not looked up\n"
            ),
        ),
        (
            GOOD | {"/api/second/2.0/json": {"info": {"version": "2.0"}}},
            3,
            (
                "second 2.0: not looked up: KeyError: 'vulnerabilities'\n"
                "audit: 3 packages, 0 vulnerable, 1 not looked up\n"
            ),
        ),
        (
            GOOD | {"/api/second/2.0/json": b"[]"},
            3,
            (
                "second 2.0: not looked up: TypeError: INDEX/second/2.0/json is no JSON object\n"
                "audit: 3 packages, 0 vulnerable, 1 not looked up\n"
            ),
        ),
    ],
)
def test_only_what_was_looked_up_and_has_none_is_a_success(
    index: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pages: Mapping[str, Any],
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(Index, "pages", pages)
    assert audit.main([f"--index={index}"]) == code
    assert capsys.readouterr().out == said.replace("INDEX", index)


def test_an_index_that_is_not_there_is_no_success(
    index: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main(["--index=http://127.0.0.1:1/api"]) == audit.INCOMPLETE
    assert "audit: 3 packages, 0 vulnerable, 3 not looked up\n" in capsys.readouterr().out
    assert audit.status([]) == audit.INCOMPLETE


def test_the_packages_of_this_project_are_found() -> None:
    found = dict(audit.locked(Path(__file__).resolve().parents[2]))
    assert {"click", "hpack", "psutil", "cyclonedx-python-lib"} <= found.keys()
