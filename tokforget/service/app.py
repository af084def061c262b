"""The routes."""

import asyncio
import json
import time
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from tokforget import __version__
from tokforget.service import schemas
from tokforget.service.guard import ClientGone, Guard, Refused
from tokforget.service.metrics import CONTENT_TYPE, Metrics
from tokforget.service.pages import docs_page, front_page
from tokforget.service.pool import Busy, Job, Pool
from tokforget.service.schemas import MAX_TEXTS, parse_body
from tokforget.service.settings import Settings
from tokforget.service.worker import Outcome


_PROTECTED = ("/v1/", "/metrics")
_DESCRIPTION = (
    "Shortens prompts to a budget of tokens and keeps the words that a language model needs. Arguments, defaults and errors are those of "
    "tokforget's Python interface. Requests are neither stored nor logged."
)


class Service:
    """
    The service: routes, queue and metrics. `app` is the ASGI application for a server.

    Args:
        settings ([`Settings`]): The checked settings.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.held = 0  # bytes of bodies that are being read, wait or run
        self.metrics = Metrics(lambda: self.pool.waiting, lambda: self.held)
        self.pool = Pool(settings, self.metrics)
        self.api = FastAPI(title="tokforget", version=__version__, description=_DESCRIPTION, docs_url=None, redoc_url=None,
                           openapi_url="/openapi.json", redirect_slashes=False)  # fmt: skip
        self._add_routes()
        self.api.exception_handler(HTTPException)(self._no_route)
        self.api.exception_handler(Refused)(_refusal)
        self.api.exception_handler(ClientGone)(_nobody)
        paths = [route.path for route in self.api.routes]
        self.app = Guard(self.api, settings, self.metrics, paths, _PROTECTED)

    # -- routes --------------------------------------------------------------------------------------------------------
    def _add_routes(self) -> None:
        self._add_work("/v1/compress", "compress", schemas.CompressBody, schemas.CompressedAnswer | schemas.CompressedAnswers,
                       "Shorten a text, or each of a list.")  # fmt: skip
        self._add_work("/v1/compress_messages", "compress_messages", schemas.MessagesBody, schemas.MessagesAnswer,
                       "Shorten the tool results and the older turns of a chat.")  # fmt: skip
        self._add_work("/v1/explain", "explain", schemas.ExplainBody, schemas.ExplainedAnswer,
                       "Shorten a text, and return each piece with its score (the heat map).")  # fmt: skip
        if self.settings.base_model is not None:
            self._add_work("/v1/restore", "restore", schemas.RestoreBody, schemas.RestoredAnswer,
                           "Fill the gaps of compressed texts with predictions.")  # fmt: skip
        api = self.api
        page, page_policy = front_page(has_token=self.settings.token is not None)

        @api.get("/health/live", tags=["health"], summary="Whether the service runs.")
        async def live() -> dict:
            return {"status": "live"}

        @api.get(
            "/health/ready",
            tags=["health"],
            summary="Whether it takes requests.",
            responses={503: {"description": "It does not."}},
        )
        async def ready():
            ready = self.pool.is_ready
            return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

        @api.get("/metrics", tags=["health"], summary="Numbers for Prometheus.", response_class=Response)
        async def metrics():
            return Response(self.metrics.page(), media_type=CONTENT_TYPE)

        @api.get("/", include_in_schema=False)
        async def front():
            return HTMLResponse(page, headers={"content-security-policy": page_policy})

        @api.get("/docs", include_in_schema=False)
        async def docs():
            text, policy = docs_page(api.openapi(), has_token=self.settings.token is not None)
            return HTMLResponse(text, headers={"content-security-policy": policy})

    def _add_work(self, path: str, kind: str, body: type, answer, summary: str) -> None:
        async def work(request: Request) -> Response:
            return await self._work(request, path, kind, body)

        schema = body.model_json_schema()
        faults = {status: {"model": schemas.FaultAnswer, "description": text} for status, text in _FAULTS.items()}
        self.api.post(
            path, summary=summary, description=body.__doc__.strip(), operation_id=kind, tags=["work"], response_model=answer,
            responses=faults if self.settings.token is not None else {s: f for s, f in faults.items() if s != 401},
            openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
        )(work)  # fmt: skip

    async def _no_route(self, request: Request, error: HTTPException) -> Response:
        """Answer 404 and 405 in the form of all other errors."""
        paths = sorted(route.path for route in self.api.routes)
        message = f"There is nothing at this address. There are {', '.join(paths)}."
        headers = dict(error.headers or {})
        if error.status_code == 405:
            allowed = sorted({m for r in self.api.routes if r.path == request.url.path for m in r.methods or ()})
            message = f"{request.url.path} does not take {request.method:.20}. It takes {', '.join(allowed)}."
        elif path := {"/health": "/health/ready", "/healthz": "/health/live"}.get(request.url.path):
            message = f"There is nothing at this address; {path} says how the service is."
        return await _refusal(request, Refused(error.status_code, message, headers))

    # -- one request ---------------------------------------------------------------------------------------------------
    async def _work(self, request: Request, path: str, kind: str, body: type) -> Response:
        held = _Held(self)
        try:
            data = await self._read(request, held)
            try:
                payload = parse_body(body, data, path)
                _check(payload, self.settings)
            except SyntaxError as error:
                raise Refused(400, str(error)) from None
            except ValueError as error:
                raise Refused(422, str(error)) from None
            del data
            outcome = await self._ask(request, kind, payload, held.size)
        finally:
            held.release()
        if outcome.fault:
            self.metrics.faults.inc()
            _log_fault(outcome.fault)
        if outcome.status != 200:
            raise Refused(outcome.status, outcome.body.decode())
        self.metrics.tokens_in.labels(path).inc(outcome.tokens_in)
        self.metrics.tokens_out.labels(path).inc(outcome.tokens_out)
        return Response(outcome.body, media_type="application/json")

    async def _read(self, request: Request, held: "_Held") -> bytes:
        """Read the body. Raises [`Refused`] if it is not JSON by its type, too large, or too slow."""
        settings, headers = self.settings, request.headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a form of another site cannot send this type without a preflight
            raise Refused(
                415, f"The body's kind is {kind[:60]!r}. Send JSON, with the header `Content-Type: application/json`."
            )
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise Refused(415, f"The body is packed as {headers['content-encoding'][:40]!r}. Send it as it is.")
        too_large = Refused(413, f"The body is larger than {settings.max_body:,} bytes ({settings.max_body_mb:g} MiB). Send less at once, or "
                                 "start the service with --max-body-mb.")  # fmt: skip
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > settings.max_body:
            raise too_large
        parts = []
        try:
            async with asyncio.timeout(settings.read_timeout):
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    parts.append(message.get("body", b""))
                    held.add(len(parts[-1]))
                    if held.size > settings.max_body:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(408, f"The body did not arrive within {settings.read_timeout:g} seconds. Send it faster, or in parts.",
                          {"connection": "close"}) from None  # fmt: skip

    async def _ask(self, request: Request, kind: str, payload: dict, size: int) -> Outcome:
        """
        The answer of a worker process. Raises [`Refused`] after the timeout and [`ClientGone`] if the client
        disconnects.
        """
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Outcome] = loop.create_future()

        def done(outcome: Outcome) -> None:
            loop.call_soon_threadsafe(lambda: answered.done() or answered.set_result(outcome))

        seconds = self.settings.timeout
        job = Job(kind, payload, batch_key(kind, payload), size, time.monotonic() + seconds, done)
        try:
            self.pool.submit(job)
        except Busy:
            raise Refused(503, f"All is busy: {self.pool.waiting} requests wait, and no more may. Ask again in a second.",
                          {"retry-after": "1"}) from None  # fmt: skip
        gone = asyncio.ensure_future(_until_gone(request.receive))
        try:
            await asyncio.wait({answered, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if answered.done():
                return answered.result()
            if gone.done():
                raise ClientGone
            raise Refused(
                504,
                f"No answer within {seconds:g} seconds. Send less at once, or start the service with a larger --timeout.",
            )
        finally:
            gone.cancel()
            if not answered.done():
                self.pool.abandon(job)
                answered.cancel()


_FAULTS = {
    400: "No JSON.", 401: "No token, or a wrong one.", 408: "The body took too long.", 413: "The body is too large.",
    415: "Another kind of body.", 422: "An argument is wrong, or the budget cannot be met.", 500: "A fault of the service.",
    503: "The queue is full; ask again after `Retry-After` seconds.", 504: "No answer in time.",
}  # fmt: skip


async def _refusal(request: Request, refused: Refused) -> Response:
    return Response(refused.body, refused.status, refused.headers, "application/json")


async def _nobody(request: Request, error: ClientGone) -> Response:
    return Response(status_code=499)  # only for the log


class _Held:
    """Counts the bytes that the service holds for one request."""

    def __init__(self, service: Service):
        self.service, self.size = service, 0

    def add(self, size: int) -> None:
        self.size += size
        self.service.held += size
        if self.service.held > self.service.settings.max_held:
            raise Refused(503, "All is busy: the requests that wait hold as many bytes as may be held. Ask again in a second.",
                          {"retry-after": "1"})  # fmt: skip

    def release(self) -> None:
        self.service.held -= self.size


async def _until_gone(receive: Callable) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _log_fault(place: str) -> None:
    from tokforget.service.guard import log

    log.error("fault: %s", place)


def _check(payload: dict, settings: Settings) -> None:
    """Check limits of the service, and convert values that JSON cannot express. Raises `ValueError`."""
    texts = payload.get("texts")
    if isinstance(texts, list) and len(texts) > MAX_TEXTS:
        raise ValueError(
            f"`texts` has {len(texts):,} texts; at most {MAX_TEXTS:,} go into one request. Send the others in another one."
        )
    name = payload.get("count_tokens")
    if name is not None and name not in settings.vocabularies:
        known = ", ".join(map(repr, settings.vocabularies)) or "none"
        raise ValueError(f"`count_tokens` must be one of the vocabularies of this service, got {name!r:.60}. There are {known}; start it with "
                         "--count-with NAME for more, or leave out `count_tokens`.")  # fmt: skip
    if isinstance(payload.get("protect"), list):  # a span is a pair in Python
        payload["protect"] = [tuple(item) if isinstance(item, list) else item for item in payload["protect"]]
    if any(value < 0 for value in (payload.get("memory") or {}).values()):
        raise ValueError("`memory` holds a number below 0. Send what the last answer returned as `memory`.")


def batch_key(kind: str, payload: dict) -> str | None:
    """Requests with the same key are compressed in one call; `None` for a request that must run alone."""
    if kind != "compress" or payload["budget"] == "corpus":
        return None
    protect, question, texts = payload["protect"], payload["question"], payload["texts"]
    if isinstance(protect, list) and any(isinstance(item, tuple) for item in protect):
        return None  # spans belong to one text
    if isinstance(question, list) and (not isinstance(texts, list) or len(question) != len(texts)):
        return None  # an error that concerns only this request
    rest = {name: value for name, value in payload.items() if name not in ("texts", "question", "details")}
    return json.dumps(rest, sort_keys=True)
