"""An endpoint of somebody else's: its replies bounded in size and time, its key in nothing we write."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from openai import OpenAI


REPLY = 1 << 24  # bytes; a judge's answer has some ten thousand
LEAST = 4  # characters of a secret: shorter ones would hide half of every text
HIDDEN = "[hidden]"
CHANGED = ("content-encoding", "content-length", "transfer-encoding")


class Unbounded(Exception):
    """A reply that was too large, too slow, or packed though that was not asked for."""


def shown(url: str) -> str:
    """A URL without user, password, query and fragment, each of which may be a secret."""
    return re.split("[?#]", re.sub("(?<=://).*@", "", url))[0]


def hide(text: str, key: str, url: str) -> str:
    """`text` without the key and the URL's secrets, plain or encoded, as a server may echo them."""
    for secret in sorted(_secrets(key, url), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _secrets(key: str, url: str) -> set[str]:
    found = {key}
    with suppress(ValueError):  # a URL that is none is refused elsewhere
        parts = urlsplit(url)
        user, _, _ = parts.netloc.rpartition("@")
        found |= {user, unquote(user), *user.split(":")[1:], parts.query}
        found |= {value for _, value in parse_qsl(parts.query)}
    plain = {secret for secret in found if len(secret) >= LEAST}
    return {form for secret in plain for form in _forms(secret)}


def _forms(secret: str) -> set[str]:
    """A secret as it is, in a URL, in a basic Authorization header, and quoted in JSON or Python."""
    packed = base64.b64encode(secret.encode()).decode().rstrip("=")
    escaped = {json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    return {secret, unquote(secret), quote(secret, ""), quote_plus(secret), packed} | escaped


def client(url: str, key: str, seconds: float, retries: int) -> OpenAI:
    """openai's client for one endpoint; a request and its reply may take `seconds` in all."""
    from openai import OpenAI

    parts = urlsplit(url)
    return OpenAI(
        base_url=urlunsplit((*parts[:3], "", "")),
        default_query=dict(parse_qsl(parts.query)),
        # A connection of its own for each request, so that it can be cut.
        default_headers={"Accept-Encoding": "identity", "Connection": "close"},
        api_key=key,
        timeout=seconds,
        max_retries=retries,
        http_client=_bounded(seconds),
    )


def _bounded(seconds: float) -> Any:
    """openai's own HTTP client; raises Unbounded where a reply is."""
    from openai import DefaultHttpxClient

    class Bounded(DefaultHttpxClient):
        def send(self, request: Any, *, stream: bool = False, **settings: Any) -> Any:
            with _Deadline(seconds) as deadline:
                request.extensions = {**request.extensions, "trace": deadline.connected}
                response = super().send(request, stream=True, **settings)
                try:
                    content = _content(response, deadline)
                finally:
                    response.close()
            headers = [(k, v) for k, v in response.headers.items() if k.lower() not in CHANGED]
            return type(response)(response.status_code, headers=headers, content=content, request=request)

    return Bounded()


def _content(response: Any, deadline: _Deadline) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Unbounded("the reply is packed, which was not asked for")
    content = bytearray()
    for piece in response.iter_raw():
        content += piece
        if len(content) > REPLY:
            raise Unbounded(f"the reply has more than {REPLY >> 20} MiB")
        deadline.check()
    return bytes(content)


class _Deadline:
    """Cuts the connections of one request when its time is over, also while headers trickle in."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.over = threading.Event()
        self.sockets: list[socket.socket] = []
        self.timer = threading.Timer(seconds, self._cut)
        self.timer.daemon = True

    def connected(self, event: str, about: dict[str, Any]) -> None:
        """The HTTP library's trace: each new connection's socket."""
        if event == "connection.connect_tcp.complete":
            self.sockets.append(about["return_value"].get_extra_info("socket"))

    def check(self) -> None:
        if self.over.is_set():
            raise Unbounded(f"no whole reply within {self.seconds:g} s")

    def _cut(self) -> None:
        self.over.set()
        for made in self.sockets:
            with suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> _Deadline:
        self.timer.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.timer.cancel()
        if error is not None and not isinstance(error, Unbounded):
            self.check()  # what the cut caused, in whose words ever
