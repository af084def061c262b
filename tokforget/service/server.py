"""
The server: uvicorn with time limits for slow clients, one log line per request, and a stop that finishes running
requests.
"""

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tokforget.service.app import Service
from tokforget.service.guard import Refused
from tokforget.service.pool import CannotStart
from tokforget.service.settings import Settings, url_host


log = logging.getLogger("tokforget.service")
# Most connections at once, each with a file descriptor and some kilobytes; further ones are answered with 503.
_MAX_CONNECTIONS = 512
# Longest time that a stop waits for the first request of a connection that has sent none yet.
_FIRST_REQUEST_SECONDS = 2.0


class _Protocol(H11Protocol):
    """A connection that is closed if its client sends headers or reads answers too slowly."""

    read_timeout = 10.0

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._stopping = False

    @property
    def waits_for_first_request(self) -> bool:
        return self.cycle is None and not self.transport.is_closing()

    def finish(self) -> None:
        """Close the connection after the request that runs or, where there was none yet, that comes first."""
        self._stopping = True
        if not self.waits_for_first_request:
            self.shutdown()

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._watch_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._stopping and self.cycle is not None:
            self.cycle.keep_alive = False
        self._watch_headers()

    def _watch_headers(self) -> None:
        """Limit the time from the connection or from the first byte of a request to the end of its headers."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._reading = _stopped(self._reading)
        elif self._reading is None and not self.transport.is_closing():
            self._reading = self.loop.call_later(self.read_timeout, self._too_slow)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle is None or self.cycle.response_complete:
            self._reading = _stopped(self._reading)  # now the limit of an idle connection applies

    def _too_slow(self) -> None:
        self._reading = None
        if not self.transport.is_closing() and self.conn.our_state is h11.IDLE:
            self._say(Refused(408, f"The headers did not arrive within {self.read_timeout:g} seconds."))
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self._writing or self.loop.call_later(self.read_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writing = _stopped(self._writing)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._reading, self._writing = _stopped(self._reading), _stopped(self._writing)

    def send_400_response(self, msg: str) -> None:
        # As in uvicorn, but in the form of all other errors. The message of h11 may contain a part of the request.
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._say(Refused(400, "This is no request of HTTP that can be read."))
        self.transport.close()

    def _say(self, refused: Refused) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(refused.body)).encode()),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=refused.status, headers=headers, reason=b"")
        for event in (response, h11.Data(data=refused.body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class _Server(uvicorn.Server):
    """A server that exits normally after a stop signal."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()  # uvicorn would send them to this process again

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn resets connections that are not accepted yet or have not sent their request. Their clients would see
        # an error, although they connected before the stop.
        loop = asyncio.get_running_loop()
        for listener in sockets or []:
            loop.remove_reader(listener)
        await asyncio.sleep(0.01)  # the loop finishes what it has accepted
        accepted = [connection for listener in sockets or [] for connection in _accept_all(listener)]
        for server in self.servers:
            server.close()  # at once, so that nobody connects in between
        for connection in accepted:
            await loop.connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(0.01)  # the loop reads what has arrived
        until = loop.time() + min(_FIRST_REQUEST_SECONDS, self.config.timeout_graceful_shutdown or 0)
        for connection in list(self.server_state.connections):
            connection.finish()
        while any(one.waits_for_first_request for one in self.server_state.connections):
            if self.force_exit or loop.time() > until:
                break
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)

    def _protocol(self) -> _Protocol:
        return self.config.http_protocol_class(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def _accept_all(listener: socket.socket) -> list[socket.socket]:
    """Accept the connections that wait."""
    accepted = []
    with suppress(BlockingIOError):
        while True:
            accepted.append(listener.accept()[0])
    return accepted


def bind(settings: Settings) -> socket.socket:
    """
    Bind the socket to listen on.

    Raises:
        `ValueError`: If the address does not belong to this machine or is in use.
    """
    address = f"{url_host(settings.host)}:{settings.port}"
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listener = socket.create_server(found[0][4][:2], family=found[0][0], backlog=1024)
        # Accepted connections inherit it. Without it the body of an answer waits 40 ms until the client acknowledges
        # the headers.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise ValueError(
            f"It cannot listen on {address}: {error.strerror or error}. Choose another `host` or `port`."
        ) from error


def run(
    settings: Settings, say: Callable[[str], None], listening: Callable[[_Server, Service], None] | None = None
) -> None:
    """
    Serve until a stop signal. Then no requests are accepted, running requests are finished, and the function returns.

    Args:
        settings ([`Settings`]): The checked settings.
        say (`Callable`): Called with lines for the user who started the service.
        listening (`Callable`, *optional*): Called with the server and the service when requests are accepted.

    Raises:
        `ValueError`: If the address cannot be used, or the model cannot be loaded.
    """
    with bind(settings) as listener, _logging():
        service = Service(settings)
        try:
            service.pool.start()
        except CannotStart as error:
            raise ValueError(str(error)) from error
        try:
            protocol = type("_Protocol", (_Protocol,), {"read_timeout": settings.read_timeout})
            config = uvicorn.Config(
                service.app, http=protocol, loop="asyncio", ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
                proxy_headers=False, timeout_keep_alive=5, timeout_graceful_shutdown=settings.stop_timeout,
                limit_concurrency=_MAX_CONNECTIONS, backlog=1024,
            )  # fmt: skip
            server = _Server(config)
            address = f"http://{url_host(settings.host)}:{listener.getsockname()[1]}"
            say(
                f"serving {settings.model or 'the packaged model'} at {address}, reference at {address}/docs; Ctrl-C stops it"
            )
            if listening is not None:
                listening(server, service)
            server.run(sockets=[listener])
            say("stopped")
        finally:
            service.pool.stop()


@contextmanager
def _logging() -> Iterator[None]:
    """
    Log requests and faults to standard error, with the time. Messages of other libraries below errors, and the texts
    of errors, are not logged.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    host = logging.getLogger("uvicorn.error")
    before = [(one, one.level, one.propagate) for one in (log, host)]
    for logger, level in ((log, logging.INFO), (host, logging.ERROR)):
        logger.setLevel(level)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, level, propagate in before:
            logger.setLevel(level)
            logger.propagate = propagate
            logger.removeHandler(handler)


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.exc_info = record.exc_text = None  # the text of an error may contain the user's data
        return super().format(record)
