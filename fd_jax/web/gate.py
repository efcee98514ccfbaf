"""Lets through the routes of the page and the API alone, and requests of a bounded size."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# Files are neither taken nor given: photographs and pictures travel inside of messages. So the
# framework's routes of uploads, files, proxies, streams and histories are not reachable at all.
_PATHS = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
_FOLDERS = ("/assets/", "/static/", "/svelte/")
_FOLDERS += ("/gradio_api/call/", "/gradio_api/run/", "/gradio_api/heartbeat/")
_API = ("info", "queue/join", "queue/data", "cancel", "reset", "startup-events", "app_id")
_ALLOWED = {*_PATHS, *(f"/gradio_api/{name}" for name in _API)}


class Gate:
    """ASGI middleware in front of the page.

    Args:
        app: The application behind.
        max_body: Largest size of a request's body in bytes.
    """

    def __init__(self, app: App, max_body: int):
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers a request, or hands it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # the page opens no web socket
        if not _is_allowed(scope["path"]):
            await _refuse(send, 404, b"not found")
            return
        content = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            content += message.get("body", b"")
            more = message.get("more_body", False)
            if len(content) > self._max_body:
                await _refuse(send, 413, f"expected {self._max_body} bytes at most".encode())
                return
        is_read = False

        async def replay() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": content, "more_body": False}

        await self._app(scope, replay, send)


def _is_allowed(path: str) -> bool:
    """Whether a path, decoded and without its query, is one of the page's own."""
    if ".." in path or "\\" in path:
        return False
    return path in _ALLOWED or path.rstrip("/") in _ALLOWED or path.startswith(_FOLDERS)


async def _refuse(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
