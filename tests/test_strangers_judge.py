"""Promises about other people's judges: no key of ours is kept or said, and no reply goes on for ever."""

from __future__ import annotations

import base64
import gzip
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from test_mtbench import QUESTIONS, answer

from lkv.bench.mtbench import endpoint
from lkv.bench.mtbench.endpoint import HIDDEN, hide, shown
from lkv.bench.mtbench.requests import Judge, ask_once
from lkv.cli.main import main
from lkv.errors import UserError
from lkv.files.json_files import write_jsonl

KEY = "sk-very/secret+key="
SECRETS = (
    KEY,
    "pass%2Fword",
    "pass/word",
    "t0k3n-in-url",
    quote(KEY, ""),
    base64.b64encode(KEY.encode()).decode(),
)
Write = Callable[[bytes], None]


class Raw:
    """A server that reads a request and lets `reply` write what it likes."""

    def __init__(self, reply: Callable[[Write], None]) -> None:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                size = 0
                while (line := self.rfile.readline()).strip():
                    if line.lower().startswith(b"content-length:"):
                        size = int(line.split(b":")[1])
                self.rfile.read(size)
                with suppress(OSError):  # the client hung up
                    reply(self.wfile.write)

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def raw() -> Iterator[Callable[[Callable[[Write], None]], Raw]]:
    made: list[Raw] = []

    def make(reply: Callable[[Write], None]) -> Raw:
        made.append(Raw(reply))
        return made[-1]

    yield make
    for one in made:
        one.server.shutdown()
        one.server.server_close()


def body(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 0, "model": "j", "choices": [choice]}
    ).encode()


def response(status: str, content: bytes, extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{extra}"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def run(folder: Path, url: str) -> int:
    write_jsonl(folder / "answers.jsonl", [answer(QUESTIONS[0])])
    files = {name: str(folder / name) for name in ("journal", "judgements", "out", "log")}
    words = [word for name, path in files.items() for word in (f"--{name}", path)]
    given = [
        "--answers",
        str(folder / "answers.jsonl"),
        "--url",
        url,
        "--model",
        "j",
        "--key-variable",
        "MY_KEY",
    ]
    return main(["judge", *given, *words])


@pytest.mark.parametrize("status", ["200 OK", "401 Unauthorized", "400 Bad Request", "404 Not Found"])
def test_a_key_that_a_server_echoes_is_neither_kept_nor_said(
    status: str,
    raw: Callable[..., Raw],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    echo = " ".join(SECRETS) + " [[7]]"
    content = (
        body(echo)
        if status.startswith("2")
        else json.dumps({"error": {"message": "x" * 150 + echo}}).encode()
    )
    server = raw(lambda write: write(response(status, content)))
    run(tmp_path, f"http://me:pass%2Fword@127.0.0.1:{server.port}/v1?api-key=t0k3n-in-url")
    said = capsys.readouterr()
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()} | {"out": said.out, "err": said.err}
    assert len(kept) > 3
    for name, text in kept.items():
        assert [secret for secret in (*SECRETS, KEY[:9]) if secret in text] == [], name
    assert any(HIDDEN in text for text in kept.values())
    assert any("127.0.0.1" in text for text in kept.values()) or status.startswith(("200", "400"))


def test_a_url_is_shown_without_what_may_be_secret() -> None:
    for url in ("http://u:p@h:1/v1?k=s#f", "http://h:1/v1", "http://u:p/?@h:1/v1"):
        assert shown(url) == "http://h:1/v1"
    assert shown("http://[::1") == "http://[::1"
    assert hide("none of it", "", "http://h/v1") == "none of it"
    assert hide(f"a {KEY} b", KEY, "http://[::1") == f"a {HIDDEN} b"


def test_a_key_that_was_given_as_its_variables_name_is_not_said() -> None:
    with pytest.raises(UserError) as caught:
        Judge("http://h/v1", "j", key_variable=KEY).client()
    assert KEY not in str(caught.value) and "give the name" in str(caught.value)


def slow_head(write: Write) -> None:
    write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        write(b"x")
        time.sleep(0.05)


def slow_body(write: Write) -> None:
    write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    while True:
        write(b" ")
        time.sleep(0.05)


def endless(write: Write) -> None:
    write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        write(b" " * 65536)


def packed(write: Write) -> None:
    write(response("200 OK", gzip.compress(bytes(1 << 20)), "Content-Encoding: gzip\r\n"))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (slow_head, "no whole reply within 1 s"),
        (slow_body, "no whole reply within 1 s"),
        (endless, "the reply has more than 1 MiB"),
        (packed, "the reply is packed, which was not asked for"),
    ],
)
def test_a_reply_is_bounded_in_time_and_size(
    reply: Callable[[Write], None], words: str, raw: Callable[..., Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "REPLY", 1 << 20)
    by = Judge(f"http://127.0.0.1:{raw(reply).port}/v1", "j", key_variable="none", timeout_s=1.0, retries=0)
    start = time.monotonic()
    found = ask_once(by.client(), by, {"messages": [{"role": "user", "content": "x"}]})
    assert found == {"status": "failed", "rating": None, "error": words}
    assert time.monotonic() - start < 8


def test_queries_of_a_url_reach_the_endpoint() -> None:
    client = endpoint.client("http://h:1/v1?api-version=2", "k", 1.0, 0)
    assert str(client.base_url) == "http://h:1/v1/"
    assert client.default_query == {"api-version": "2"}
