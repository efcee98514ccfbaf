"""What page and API call: requests in, pictures out, jobs by their owner."""

import base64
import threading
from typing import Any

from fd_jax.errors import InputError
from fd_jax.images.png import setting_text
from fd_jax.inference.pictures import ImageConfig, OutputConfig
from fd_jax.inference.pipeline import FaceDiffuser
from fd_jax.inference.writer import PictureWriter
from fd_jax.web.jobs import Job
from fd_jax.web.requests import SHARED, Limits, parse_request
from fd_jax.web.results import Result, finished_pictures
from fd_jax.web.scheduler import Scheduler


class Service:
    """Takes requests of all users.

    Args:
        pipe: The models.
        scheduler: Samples the requests.
        images: Settings that all pictures share; those of the sampler are defaults.
        limits: Limits of a request.
        models: Paths of the models, for the settings in the PNG files.
    """

    def __init__(
        self,
        pipe: FaceDiffuser,
        scheduler: Scheduler,
        images: ImageConfig,
        limits: Limits,
        models: dict[str, str],
    ):
        self.pipe = pipe
        self.scheduler = scheduler
        self.images = images
        self.limits = limits
        self._models = models
        self._jobs: dict[str, list[Job]] = {}
        self._lock = threading.Lock()

    def sample(
        self,
        prompt: str,
        photographs: list[dict],
        negative_prompt: str = "",
        num_images: int = 1,
        first_image: int = 0,
        seed: int = 0,
        settings: dict | None = None,
    ) -> dict:
        """Samples pictures of a prompt.

        Args:
            prompt: Prompt with a marker <|image|> after each person's word.
            photographs: {"name": file name, "data": base64 of an image file} for each marker.
            negative_prompt: Prompt to guide away from.
            num_images: Number of pictures with each combination of settings.
            first_image: Number of the first picture.
            seed: Seed of the noise, 0..2**32 - 1.
            settings: Fields of SamplerConfig by name; lists of values make a grid.

        Returns:
            {"pictures": [{"name", "label", "png": base64}, ...], "notes": [...]}; or
            {"error": message}.
        """
        try:
            job = self.submit(
                prompt=prompt,
                photographs=photographs,
                negative_prompt=negative_prompt,
                num_images=num_images,
                first_image=first_image,
                seed=seed,
                settings=settings,
            )
        except InputError as error:
            return {"error": str(error)}
        *_, last = job.follow()
        if last.state != "done":
            return {"error": last.message or last.state}
        pictures = [
            {"name": r.name, "label": r.label, "png": base64.b64encode(r.png).decode()}
            for r in self.pictures(job)
        ]
        return {"pictures": pictures, "notes": job.notes}

    def submit(self, *, owner: str | None = None, wants_frames: bool = False, **given: Any) -> Job:
        """Puts a request into the queue. Raises InputError.

        Args:
            owner: Session that may cancel it.
            wants_frames: Whether it is watched.
            **given: Arguments of `parse_request`.
        """
        request = parse_request(
            self.limits, self.images.sampler, self.scheduler.max_images, **given
        )
        job = self.scheduler.submit(request, wants_frames=wants_frames)
        if owner is not None:
            with self._lock:
                alive = {
                    name: [job for job in jobs if not job.is_over]
                    for name, jobs in self._jobs.items()
                }
                self._jobs = {name: jobs for name, jobs in alive.items() if jobs}
                self._jobs.setdefault(owner, []).append(job)
        return job

    def cancel(self, owner: str | None) -> int:
        """Cancels the jobs of a session, and returns how many there were."""
        with self._lock:
            jobs = [] if owner is None else self._jobs.pop(owner, [])
        running = [job for job in jobs if not job.is_over]
        for job in running:
            job.cancel()
        return len(running)

    def pictures(self, job: Job) -> list[Result]:
        """Returns the pictures of a job that is done."""
        return finished_pictures(self.pipe, self.images, self._models, job)

    def differences(self, texts: dict[str, str]) -> str:
        """Returns which fixed settings of a picture differ from this server's, with its values."""
        writer = PictureWriter(self.images, OutputConfig(), self._models)
        here = writer.settings(self.pipe)
        names = ["height", "width", "subject_resolution", "crop_references", *SHARED, "dtype"]
        names += ["models", "base", "sdm", "tdm", "image_encoder", "loras", "lora_on"]
        found = [
            f"{name} ({texts.get(name, 'none')} there)"
            for name in names
            if texts.get(name) != (setting_text(here[name]) if name in here else None)
        ]
        return ", ".join(found)
