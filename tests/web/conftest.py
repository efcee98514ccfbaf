"""A scheduler on tiny untrained networks, and requests to it."""

import base64
import dataclasses

import pytest

from fd_jax import SamplerConfig
from fd_jax.inference.pictures import ImageConfig
from fd_jax.web.requests import Limits, parse_request
from fd_jax.web.scheduler import Scheduler

DEFAULTS = SamplerConfig(num_steps=12)
SIZES = (1, 4)


def as_json(path):
    """A photograph as a request holds it."""
    return {"name": path.name, "data": base64.b64encode(path.read_bytes()).decode()}


@pytest.fixture(scope="session")
def ask(people):
    """Makes requests of one person's pictures."""

    def make(prompt="a man <|image|> in the snow", photographs=people[:1], **fields):
        photographs = [as_json(path) for path in photographs]
        options = {"prompt": prompt, "photographs": photographs} | fields
        return parse_request(Limits(), DEFAULTS, SIZES[-1], **options)

    return make


@pytest.fixture(scope="session")
def images():
    """Settings that all pictures share; photographs are not cut, which needs a detector."""
    return dataclasses.replace(
        ImageConfig(), sampler=DEFAULTS, subject_resolution=28, crop_references=False
    )


@pytest.fixture(scope="session")
def scheduler(pipe, images):
    """A running scheduler, warmed up."""
    scheduler = Scheduler(pipe, images, SIZES, max_waiting=6)
    scheduler.warm_up()
    yield scheduler
    scheduler.close()
