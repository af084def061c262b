"""
The layer around all routes: access control, logging and security headers.

A request is logged in one line with address, method, route, status, milliseconds and bytes. Bodies, query strings,
unknown paths and texts of errors are never logged, because they may contain the user's data.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

from tokforget.service.metrics import Metrics
from tokforget.service.settings import Settings


log = logging.getLogger("tokforget.service")
# Bytes of a refused request that are read and discarded before the answer, because a client that is still writing when
# the connection closes loses the answer. 100 MB from the same machine take a tenth of a second.
_DRAIN_BYTES, _DRAIN_SECONDS = 256 * 2**20, 5.0
_NOTHING = "default-src 'none'; frame-ancestors 'none'"
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    (b"cache-control", b"no-store"),
)


class Refused(Exception):
    """
    A request that is answered with an error.

    Args:
        status (`int`): HTTP status.
        message (`str`): One line: what was sent, what is allowed, what to do.
        headers (`dict[str, str]`, *optional*): Further headers of the answer.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}

    @property
    def body(self) -> bytes:
        return json.dumps({"error": {"status": self.status, "message": self.message}}).encode()


class ClientGone(Exception):
    """The client has closed the connection, so that no answer is needed."""


class Guard:
    """
    ASGI middleware.

    Args:
        app: The inner application.
        settings ([`Settings`]), metrics ([`Metrics`]): Those of the service.
        routes (`Iterable[str]`): Paths that logs and metrics name; all others are `other`.
        protected (`tuple[str, ...]`): Prefixes of paths that need the token.
    """

    def __init__(self, app, settings: Settings, metrics: Metrics, routes: Iterable[str], protected: tuple[str, ...]):
        self.app, self.settings, self.metrics = app, settings, metrics
        self.routes, self.protected = frozenset(routes), protected
        self._token = None if settings.token is None else _digest(settings.token.encode())

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        visit = _Visit(scope, receive, send)
        try:
            try:
                self._let_in(scope)
                await self.app(scope, visit.receive, visit.send)
            except Refused as refused:
                await visit.refuse(refused)
        except ClientGone:
            visit.status = 499
        except asyncio.CancelledError:  # the service stops, and the time for running requests is over
            await visit.refuse(
                Refused(503, "The service is being stopped. Ask again.", {"retry-after": "1", "connection": "close"})
            )
        except Exception as error:
            self._log_fault(error)
            await visit.refuse(Refused(500, "This should not happen; please report it with `tokforget env`."))
        finally:
            self._account(scope, visit)

    def _let_in(self, scope) -> None:
        headers = dict(scope["headers"])
        hosts = self.settings.hosts
        if hosts is not None and _host_name(headers.get(b"host", b"")) not in hosts:
            raise Refused(421, f"This service goes by {', '.join(sorted(hosts))} and was asked for by another name. Use one of these, or "
                               "start it with --allowed-host NAME.")  # fmt: skip
        if self._token is None or not scope["path"].startswith(self.protected):
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        right = hmac.compare_digest(
            _digest(given.strip()), self._token
        )  # compare digests, so that neither length nor time leaks the token
        if (
            scheme.lower() != b"bearer"
            or not right
            or [name for name, _ in scope["headers"]].count(b"authorization") != 1
        ):
            raise Refused(401, "This service needs its token: send the header `Authorization: Bearer <token>`.",
                          {"www-authenticate": "Bearer"})  # fmt: skip

    def _log_fault(self, error: Exception) -> None:
        self.metrics.faults.inc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        log.error("fault: %s in %s, line %d", type(error).__name__, Path(last.filename).name, last.lineno or 0)

    def _account(self, scope, visit: "_Visit") -> None:
        route = scope["path"] if scope["path"] in self.routes else "other"
        seconds = time.perf_counter() - visit.began
        self.metrics.requests.labels(route, str(visit.status or 499)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        client = scope.get("client")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        log.info("%s %s %s %d %.1f ms, %d B in, %d B out", client[0] if client else "-", method, route, visit.status or 499,
                 1000 * seconds, visit.bytes_in, visit.bytes_out)  # fmt: skip


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class _Visit:
    """One request: the bytes read and written."""

    def __init__(self, scope, receive, send):
        self.scope, self._receive, self._send = scope, receive, send
        self.began = time.perf_counter()
        self.status = self.bytes_in = self.bytes_out = 0
        headers = dict(scope["headers"])
        self.body_done = not (b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0")
        self._expects = b"expect" in headers  # a client that waits for 100 Continue has sent no body yet

    async def receive(self):
        message = await self._receive()
        if message["type"] == "http.request":
            self.bytes_in += len(message.get("body", b""))
            self.body_done = not message.get("more_body", False)
        return message

    async def send(self, message) -> None:
        if message["type"] == "http.response.start":
            if not self.body_done and not self._expects:
                await self._drain()
            self.status = message["status"]
            own = {name for name, _ in message["headers"]}
            added = [*_HEADERS, (b"content-security-policy", _NOTHING.encode())]
            if not self.body_done:
                added.append((b"connection", b"close"))
            headers = [*message["headers"], *(pair for pair in added if pair[0] not in own)]
            message = message | {"headers": headers}
        else:
            self.bytes_out += len(message.get("body", b""))
        await self._send(message)

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self.body_done and self.bytes_in < _DRAIN_BYTES:
                    if (await self.receive())["type"] == "http.disconnect":
                        return
        except TimeoutError:
            pass

    async def refuse(self, refused: Refused) -> None:
        if self.status:  # the answer has begun, so an error can no longer be sent
            return
        headers = {"content-type": "application/json", "content-length": str(len(refused.body))} | refused.headers
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refused.status, "headers": pairs})
        await self.send(
            {"type": "http.response.body", "body": b"" if self.scope["method"] == "HEAD" else refused.body}
        )


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _host_name(header: bytes) -> str:
    """The name in a `Host`, without its port."""
    name = header.decode("latin-1").strip().lower()
    bracket = name.find("]")
    return name[: bracket + 1] if name.startswith("[") else name.partition(":")[0]
