"""A request on its way through the queue, as the user follows it."""

import threading
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from fd_jax.inference.inputs import SamplingInputs
from fd_jax.sampling.stages import SamplerConfig
from fd_jax.web.requests import Request

State = Literal["waiting", "sampling", "done", "cancelled", "failed"]
FINAL = ("done", "cancelled", "failed")


class Frame(NamedTuple):
    """What the models see at one evaluation of a job's first picture."""

    step: int
    stage: str
    predicted: UInt8[np.ndarray, "h w 3"]
    tdm_saliency: Float[np.ndarray, "lh lw"]  # NaN where the model does not run
    sdm_saliency: Float[np.ndarray, "lh lw"]
    sdm_weight: Float[np.ndarray, "lh lw"]


class Status(NamedTuple):
    """Where a job stands."""

    state: State
    ahead: int = 0  # requests before it, while it waits
    done: int = 0  # evaluations
    total: int = 0
    seconds_left: float | None = None
    frames: tuple[Frame, ...] = ()
    message: str = ""


class Job:
    """A request with its inputs; threads follow it while another one samples.

    Attributes:
        request: What was asked for, without its photographs.
        names: File names of the photographs.
        inputs: Its inputs, in a batch of one.
        wants_frames: Whether frames are decoded while it is sampled.
        notes: Warnings about its photographs and prompt.
        pixels: The pictures, once it is done.
    """

    def __init__(
        self, request: Request, inputs: SamplingInputs, notes: list[str], *, wants_frames: bool
    ):
        # Only the inputs and the photographs' names are kept.
        self.request = request._replace(references=())
        self.names = tuple(reference.name for reference in request.references)
        self.inputs = inputs
        self.notes = notes
        self.wants_frames = wants_frames
        self.pixels: list[UInt8[np.ndarray, "h w 3"]] = []
        self._status = Status("waiting")
        self._version = 0
        self._changed = threading.Condition()

    @property
    def samplers(self) -> list[SamplerConfig]:
        """Returns the sampler of each picture."""
        return [image.sampler for image in self.request.images]

    @property
    def status(self) -> Status:
        """Returns where the job stands."""
        with self._changed:
            return self._status

    @property
    def is_over(self) -> bool:
        """Whether the job is done, cancelled or failed."""
        return self.status.state in FINAL

    def cancel(self) -> None:
        """Ends the job, unless it is over. What is being sampled ends at its next part."""
        self.update(Status("cancelled"))

    def update(self, status: Status) -> None:
        """Changes the status, unless the job is over."""
        with self._changed:
            if self._status.state not in FINAL:
                self._status = status
                self._version += 1
                self._changed.notify_all()

    def follow(self) -> Iterator[Status]:
        """Yields the status at each change, the newest alone for a slow reader, until the end."""
        seen = -1
        while True:
            with self._changed:
                self._changed.wait_for(lambda last=seen: self._version != last)
                seen, status = self._version, self._status
            yield status
            if status.state in FINAL:
                return
