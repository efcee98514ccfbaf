"""Only the routes of the page answer, and large requests are refused."""

import asyncio

import pytest

from fd_jax.web.gate import Gate


def answer(path, *chunks, max_body=10):
    """Status and body that a request gets; the application behind echoes."""

    async def echo(scope, receive, send):
        message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"]})

    parts = [
        {"type": "http.request", "body": chunk, "more_body": i + 1 < len(chunks)}
        for i, chunk in enumerate(chunks)
    ]
    sent = []

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(Gate(echo, max_body)({"type": "http", "path": path}, receive, send))
    return sent[0]["status"], sent[1]["body"]


@pytest.mark.parametrize(
    "path", ["/", "/config", "/gradio_api/queue/join", "/gradio_api/call/sample/12", "/assets/a.js"]
)
def test_the_page_is_let_through(path):
    assert answer(path, b"abc", b"de") == (200, b"abcde")


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/upload",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/stream/1",
        "/gradio_api/runs",
        "/assets/../../etc/passwd",
        "/static/..\\..\\etc/passwd",
        "/monitoring",
        "//etc/passwd",
    ],
)
def test_other_routes_are_not_found(path):
    assert answer(path, b"")[0] == 404


def test_large_bodies_are_refused_however_they_come():
    assert answer("/config", b"1234567890")[0] == 200
    assert answer("/config", b"123456", b"78901")[0] == 413
