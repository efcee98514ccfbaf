"""Starts the server of the page."""

import socket
from pathlib import Path

import gradio as gr  # pyright: ignore[reportMissingImports]
import uvicorn  # pyright: ignore[reportMissingImports]
from fastapi import FastAPI  # pyright: ignore[reportMissingImports]

from fd_jax.errors import InputError
from fd_jax.web.gate import Gate
from fd_jax.web.page import build_page
from fd_jax.web.service import Service

_MAX_THREADS = 128  # each request that is followed holds one


def launch(service: Service, *, host: str, port: int) -> None:
    """Serves the page until the process is interrupted.

    Args:
        service: Takes the requests.
        host: Address to listen at.
        port: Port to listen at; 0 takes a free one.

    Raises:
        InputError: The address cannot be used.
    """
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise InputError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error
    blocks = build_page(service)
    blocks.max_threads = _MAX_THREADS
    blocks.queue(default_concurrency_limit=None, max_size=_MAX_THREADS)
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        server_name=host,
        footer_links=["api"],
        run_history=False,
        ssr_mode=False,
        max_file_size=0,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css_paths=Path(__file__).parent / "page.css",
    )
    config = uvicorn.Config(Gate(app, service.limits.max_body), log_level="warning")
    server = uvicorn.Server(config)
    print(f"page and API at http://{host}:{listener.getsockname()[1]}", flush=True)
    with listener:
        server.run(sockets=[listener])
