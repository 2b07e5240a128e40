"""The proxy: requests in, each with its rank to the engine's server, and the answer back as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx2
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from grace_moe.frontend.dispatcher import Dispatcher

CONNECT_SECONDS = 10.0
"""That the engine's server has to take a connection. An answer may take as long as it takes."""
STATUS_PATH = "/grace/status"
_HOP_BY_HOP = frozenset(
    [b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade"]
)
"""Headers of one connection (RFC 9110, 7.6.1): they are not handed on."""

Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")


class TooLargeError(Exception):
    """A body over the limit."""


def proxy(dispatcher: Dispatcher, upstream: str, max_body_bytes: int) -> Starlette:
    """The ASGI application.

    Every method and path goes to `upstream`; `STATUS_PATH` alone is answered here. An answer's status, headers and bytes are those of the
    engine. Nothing is tried again: a request that an engine may have begun must not run twice.

    Args:
        upstream: address of the engine's server, such as `http://127.0.0.1:8000`.
        max_body_bytes: of a request; more is refused.
    """
    client = httpx2.AsyncClient(limits=httpx2.Limits(max_connections=None, max_keepalive_connections=256), trust_env=False)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    async def status(_: Request) -> Response:
        return JSONResponse(dispatcher.status())

    forward = _Forward(dispatcher, client, upstream, max_body_bytes)
    routes = [Route(STATUS_PATH, status, methods=["GET"]), Route("/{path:path}", forward)]
    return Starlette(routes=routes, lifespan=lifespan)


class _Forward:
    """Hands requests on: an ASGI application of its own."""

    def __init__(self, dispatcher: Dispatcher, client: httpx2.AsyncClient, upstream: str, max_body_bytes: int) -> None:
        self.dispatcher, self.client, self.upstream, self.max_body_bytes = dispatcher, client, upstream, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body = await _whole_body(request, self.max_body_bytes)
        except TooLargeError:
            mend = f"the body is over {self.max_body_bytes} bytes; send less, or start the front-end with a larger --max-body"
            return await _refusal(413, mend)(scope, receive, send)
        except ClientDisconnect:
            return None
        headers, path = _handed_on(request.headers.raw, b"host", b"content-length"), scope["path"]
        placed = self.dispatcher.place(path, headers, body) if self.dispatcher.places(request.method, path) else None
        if placed is None:
            self.dispatcher.not_placed += 1
            return await self._relay(self._request(scope, headers, body), scope, receive, send)
        try:
            return await self._relay(self._request(scope, placed.headers, placed.body), scope, receive, send)
        finally:
            self.dispatcher.done(placed.rank)

    def _request(self, scope: Scope, headers: Headers, body: bytes) -> httpx2.Request:
        """What the engine gets: path and query byte by byte, and no header that the client did not send."""
        query = scope["query_string"]
        url = httpx2.URL(self.upstream).copy_with(raw_path=scope["raw_path"] + (b"?" + query if query else b""))
        wait = httpx2.Timeout(None, connect=CONNECT_SECONDS).as_dict()
        return httpx2.Request(scope["method"], url, headers=headers, content=body, extensions={"timeout": wait})

    async def _relay(self, request: httpx2.Request, scope: Scope, receive: Receive, send: Send) -> None:
        """The engine's answer to the client, or in one line why there is none. Where the client goes, the engine is told by hanging up."""
        try:
            answer = await _unless_gone(receive, self.client.send(request, stream=True))
        except httpx2.HTTPError as error:
            self.dispatcher.upstream_away += 1
            reason = str(error) or type(error).__name__
            return await _refusal(502, f"the engine's server at {self.upstream} gave no answer ({reason}); is it up?")(scope, receive, send)
        except ClientDisconnect:
            return None
        try:
            await _unless_gone(receive, self._parts(answer, send))
        except (ClientDisconnect, OSError):
            return None  # nobody reads it
        finally:
            await answer.aclose()

    async def _parts(self, answer: httpx2.Response, send: Send) -> None:
        """Bytes as they come. Where the engine stops in the middle there is no last part: the client must see that it is not whole."""
        await send({"type": "http.response.start", "status": answer.status_code, "headers": _handed_on(answer.headers.raw)})
        try:
            async for part in answer.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except httpx2.HTTPError:
            self.dispatcher.cut_off += 1
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. Raises ClientDisconnect, with the work cancelled, where the client goes first."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _whole_body(request: Request, most: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise TooLargeError
        parts.append(part)
    return b"".join(parts)


def _handed_on(headers: Headers, *without: bytes) -> Headers:
    """Headers less those of one connection, and those that the connection header names."""
    named = {word.strip().lower() for name, value in headers if name.lower() == b"connection" for word in value.split(b",")}
    left_out = _HOP_BY_HOP | named | set(without)
    return [(name.lower(), value) for name, value in headers if name.lower() not in left_out]


def _refusal(status: int, message: str) -> Response:
    """An error in the form that OpenAI's clients read."""
    return JSONResponse({"error": {"message": message, "type": "front_end", "code": status}}, status_code=status)
