"""An engine's server as the proxy sees one, in a process of its own: `python -m tests.frontend.upstream PORT`."""

import asyncio
import json
import os
import sys

import uvicorn

SEEN = []
"""What came in: method, target, headers, size of the body."""


async def body_of(receive):
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


async def start(send, status=200, headers=()):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def part(send, body, more=True):
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    path, body = scope["path"], await body_of(receive)
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    target = scope["raw_path"].decode() + ("?" + scope["query_string"].decode() if scope["query_string"] else "")
    if path == "/seen":
        await start(send)
        return await part(send, json.dumps(SEEN).encode(), more=False)
    SEEN.append({"method": scope["method"], "target": target, "headers": headers, "body": body.decode("latin-1")})
    if path == "/error":
        await start(send, 418, [(b"x-own", b"1"), (b"x-own", b"2"), (b"content-length", b"5")])
        return await part(send, b"short", more=False)
    if path == "/v1/chat/completions":  # five events, each when the one before has been read: the reader asks for the next
        await start(send, headers=[(b"content-type", b"text/event-stream")])
        for number in range(5):
            await part(send, f"data: {number}\n\n".encode())
            if json.loads(body).get("die") == number:
                os._exit(1)
            await asyncio.sleep(0)
        return await part(send, b"data: [DONE]\n\n", more=False)
    if path == "/wait":  # until the client goes
        while (await receive())["type"] != "http.disconnect":
            pass
        SEEN.append({"gone": True})
        return None
    await start(send, headers=[(b"content-type", b"application/json")])
    return await part(send, json.dumps({"rank": headers.get("x-data-parallel-rank"), "size": len(body)}).encode(), more=False)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
