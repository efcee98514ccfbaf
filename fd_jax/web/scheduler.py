"""Samples the requests of all users, several in one batch of a few compiled sizes."""

import functools
import math
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np

from fd_jax.errors import InputError
from fd_jax.images.pixels import to_uint8
from fd_jax.inference.compiled import PART_ROWS
from fd_jax.inference.inputs import ImageKey, join_inputs
from fd_jax.inference.pictures import ImageConfig
from fd_jax.inference.pipeline import FaceDiffuser
from fd_jax.inference.tables import Part
from fd_jax.sampling.stages import STAGE_NAMES, SamplerConfig, join_steps, make_steps
from fd_jax.web.batching import choose_batch, size_for
from fd_jax.web.jobs import Frame, Job, Status
from fd_jax.web.requests import SHARED, Request

# Share of the time of sampling that decoding of frames may take, and the number of parts after
# which there is one however long it takes.
_FRAMES_SHARE = 0.05
_MOST_PARTS = 5


class BusyError(InputError):
    """Too many requests are waiting."""


class _AllCancelled(Exception):
    """No job of the batch is wanted any more."""


class Scheduler:
    """Samples jobs in a thread of its own, in the order in which they came.

    Jobs whose tables evaluate the same models at the same steps share a batch.

    Args:
        pipe: The models.
        images: Settings that all pictures share. Of the sampler only those in `SHARED` count.
        sizes: Numbers of pictures that are compiled, rounded up to multiples of the devices.
        max_waiting: Number of jobs that may wait.
    """

    def __init__(
        self, pipe: FaceDiffuser, images: ImageConfig, sizes: Sequence[int], max_waiting: int = 64
    ):
        self.pipe = pipe
        self.images = images
        self.sizes = sorted({math.ceil(size / pipe.mesh.size) * pipe.mesh.size for size in sizes})
        self._size = pipe.latent_size(images.height, images.width)
        self._max_waiting = max_waiting
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        self._preparing = threading.Lock()
        self._is_closed = False
        self._part_seconds = dict.fromkeys(self.sizes, math.inf)
        self._decode_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="sampling", daemon=True)
        self._thread.start()

    @property
    def max_images(self) -> int:
        """Returns the largest number of pictures of a request."""
        return self.sizes[-1]

    def warm_up(self) -> None:
        """Compiles all sizes, and measures how long a part and the decoding of a frame take.

        The part is one of the SDM alone, the quickest there is, so that frames get no larger share.
        """
        shared = {name: getattr(self.images.sampler, name) for name in SHARED}
        sampler = SamplerConfig(num_steps=2 * PART_ROWS, alpha=0.0, beta=0.5, **shared)
        black = np.zeros((64, 64, 3), np.uint8)
        inputs = self._inputs("a man <|image|>", [black], "", sampler, crop=False, notes=[])
        for size in self.sizes:
            times: list[float] = []
            [samples] = self.pipe.sample_batches(
                inputs,
                [ImageKey(0, 0, number) for number in range(size)],
                sampler=[sampler] * size,
                size=self._size,
                batch_size=size,
                trace=True,
                on_part=lambda part, times=times: times.append(time.perf_counter()),
            )
            self._part_seconds[size] = times[1] - times[0]
            samples.pixels  # noqa: B018 - compiles the decoder
        latents = np.zeros((1, *self._size, 4), np.float32)
        times = []
        for _ in range(4):  # the first compiles; of the rest the quickest was disturbed least
            begin = time.perf_counter()
            self._decode(latents)
            times.append(time.perf_counter() - begin)
        self._decode_seconds = min(times[1:])

    def submit(self, request: Request, *, wants_frames: bool = False) -> Job:
        """Puts a request into the queue.

        Raises:
            InputError: Its prompt, photographs or settings cannot be used.
            BusyError: Too many requests are waiting.
        """
        with self._changed:
            self._check_room()
        join_steps([make_steps(image.sampler, self.pipe.schedule) for image in request.images])
        notes: list[str] = []
        with self._preparing:  # one at a time, as a decoded photograph may be large
            inputs = self._inputs(
                request.prompt,
                [reference.pixels for reference in request.references],
                request.negative_prompt,
                request.images[0].sampler,
                crop=self.images.crop_references,
                notes=notes,
            )
        job = Job(request, inputs, notes, wants_frames=wants_frames)
        with self._changed:
            self._check_room()
            job.update(Status("waiting", ahead=len(self._waiting)))
            self._waiting.append(job)
            self._changed.notify()
        return job

    def close(self) -> None:
        """Ends sampling after the part that is under way; waiting jobs are cancelled."""
        with self._changed:
            self._is_closed = True
            for job in self._waiting:
                job.cancel()
            self._changed.notify()
        self._thread.join()

    def _check_room(self) -> None:
        if self._is_closed:
            raise BusyError("the server is closing")
        self._waiting = [job for job in self._waiting if not job.is_over]
        if len(self._waiting) >= self._max_waiting:
            raise BusyError(f"{self._max_waiting} requests are waiting: try again later")

    def _inputs(
        self,
        prompt: str,
        photographs: Sequence[np.ndarray],
        negative_prompt: str,
        sampler: SamplerConfig,
        *,
        crop: bool | None,
        notes: list[str],
    ) -> Any:
        return self.pipe.make_inputs(
            [prompt],
            [photographs],
            [negative_prompt],
            subject_resolution=self.images.subject_resolution,
            mode=sampler.mode,
            crop_references=crop,
            warn=notes.append,
        )

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                jobs = self._take()
            try:
                if jobs:
                    self._sample(jobs)
            except _AllCancelled:
                pass
            except Exception as error:  # the thread goes on with the next jobs
                traceback.print_exc(file=sys.stderr)
                for job in jobs:
                    job.update(Status("failed", message=f"{type(error).__name__}: {error}"))

    def _take(self) -> list[Job]:
        """Removes the jobs of the next batch from the queue."""
        waiting = [job for job in self._waiting if not job.is_over]
        if not waiting:
            self._waiting = []
            return []
        first = self._key(waiting[0])
        alike = [job for job in waiting if self._key(job) == first]
        chosen = choose_batch([len(job.request.images) for job in alike], self.sizes)
        jobs = [alike[i] for i in chosen]
        self._waiting = [job for job in waiting if job not in jobs]
        for ahead, job in enumerate(self._waiting):
            job.update(Status("waiting", ahead=ahead))
        return jobs

    def _key(self, job: Job) -> tuple:
        """Returns what jobs of one batch have in common."""
        steps = join_steps([make_steps(sampler, self.pipe.schedule) for sampler in job.samplers])
        sampler = job.samplers[0]
        columns = steps.use_tdm, steps.use_sdm, steps.reuse_tdm, steps.reuse_sdm
        return sampler.solver, sampler.num_steps, *(np.asarray(c).tobytes() for c in columns)

    def _sample(self, jobs: Sequence[Job]) -> None:
        images = [(row, image) for row, job in enumerate(jobs) for image in job.request.images]
        size = size_for(len(images), self.sizes)
        begin = time.perf_counter()
        batches = self.pipe.sample_batches(
            join_inputs([job.inputs for job in jobs]),
            [ImageKey(row, image.seed, image.number) for row, image in images],
            sampler=[image.sampler for _, image in images],
            size=self._size,
            batch_size=size,
            trace=True,
            on_part=functools.partial(self._follow, jobs, size, begin),
        )
        [samples] = batches
        first = 0
        for job in jobs:
            numbers = range(first, first + len(job.request.images))
            first = numbers.stop
            try:
                job.pixels = [np.asarray(samples[number]) for number in numbers]
            except InputError as error:  # a picture that is not finite
                job.update(Status("failed", message=str(error)))
            else:
                job.update(job.status._replace(state="done", seconds_left=0.0))

    def _follow(self, jobs: Sequence[Job], size: int, begin: float, part: Part) -> None:
        """Tells the jobs of a batch what a part has made."""
        if self._is_closed:
            for job in jobs:
                job.cancel()
        wanted = [not job.is_over for job in jobs]
        if not any(wanted):
            raise _AllCancelled
        elapsed = time.perf_counter() - begin
        seconds_left = elapsed / part.done * (part.total - part.done)
        firsts = np.cumsum([0] + [len(job.request.images) for job in jobs])
        watched = sum(job.wants_frames for job in jobs)
        every = math.ceil(watched * self._decode_seconds / _FRAMES_SHARE / self._part_seconds[size])
        every = min(max(every, 1), _MOST_PARTS)
        has_frame = part.done == part.total or (part.first // PART_ROWS + 1) % every == 0
        for job, is_wanted, first in zip(jobs, wanted, firsts, strict=False):
            if is_wanted:
                frames = job.status.frames
                if job.wants_frames and has_frame:
                    frames = (*frames, self._frame(job, part, int(first)))
                job.update(
                    Status("sampling", 0, part.done, part.total, seconds_left, frames=frames)
                )

    def _frame(self, job: Job, part: Part, image: int) -> Frame:
        assert part.trace is not None
        trace = part.trace
        stage = make_steps(job.samplers[0], self.pipe.schedule).stage[part.done - 1]
        return Frame(
            part.done,
            STAGE_NAMES[stage],
            to_uint8(self._decode(trace.x0[-1, image][None])[0]),
            trace.tdm_saliency[-1, image],
            trace.sdm_saliency[-1, image],
            trace.sdm_weight[-1, image],
        )

    def _decode(self, latents: np.ndarray) -> np.ndarray:
        return self.pipe.decode(latents, batch_size=self.pipe.mesh.size)
