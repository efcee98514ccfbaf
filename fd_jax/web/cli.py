"""Serves a page on which pictures of given people form, and an HTTP API.

Without any models, the small ones of the package:

fd-demo

With others, by the options of fd-sample:

fd-demo --sdm runs/sdm --tdm runs/tdm

The page is at http://127.0.0.1:7860, reached from this machine alone unless --host is given. What
is given for the sampler are the values that the page begins with. Photographs and pictures are
kept in memory while they are worked on, and written nowhere.
"""

import dataclasses
import importlib.util
import os
from typing import Annotated

import tyro

from fd_jax import distributed
from fd_jax.cli import run
from fd_jax.config import Range
from fd_jax.errors import InputError
from fd_jax.inference.model_options import ModelOptions
from fd_jax.inference.pictures import ImageConfig
from fd_jax.web.requests import Limits
from fd_jax.web.scheduler import Scheduler
from fd_jax.web.service import Service


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(ModelOptions):
    """Arguments of the command."""

    images: Annotated[ImageConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=ImageConfig
    )
    limits: Annotated[Limits, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Limits)
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is reached from other machines."""
    port: Annotated[int, Range(0, 65535)] = 7860
    """Port to listen at; 0 takes a free one."""
    sizes: Annotated[tuple[Annotated[int, Range(1, 256)], ...], Range(1)] = (1, 4, 8, 16)
    """Numbers of pictures that are sampled together; each is compiled at the start. The largest is
    what one request may have."""
    max_waiting: Annotated[int, Range(1)] = 64
    """Requests that may wait."""


def serve(arguments: Arguments) -> None:
    """Serves the page until the process is interrupted."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs the package gradio: pip install 'fd_jax[demo]'")
    # Nothing is reported to others, and nothing is fetched from them.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    distributed.enable_compile_cache()
    pipe = arguments.load()
    scheduler = Scheduler(pipe, arguments.images, arguments.sizes, arguments.max_waiting)
    print(f"compiling for {', '.join(map(str, scheduler.sizes))} pictures", flush=True)
    scheduler.warm_up()
    service = Service(pipe, scheduler, arguments.images, arguments.limits, arguments.models())
    # Gradio reads its settings when it is imported.
    launch = importlib.import_module("fd_jax.web.launch").launch
    try:
        launch(service, host=arguments.host, port=arguments.port)
    finally:
        scheduler.close()


def main() -> None:
    """Runs the command line."""
    run(serve, prog="fd-demo", description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
