"""Results of sampling: latents, the images they decode to, and the trace."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from fd_jax.errors import InputError
from fd_jax.images.pixels import to_uint8
from fd_jax.sampling.stages import Steps

Decode = Callable[[Float[np.ndarray, "b h w 4"]], Float[np.ndarray, "b h2 w2 3"]]


class NonFiniteError(InputError, FloatingPointError):
    """Images with values that are NaN or infinite."""


class SamplingTrace(NamedTuple):
    """Saliency maps, masks and predictions of both models at n evaluations, for b images.

    Attributes:
        steps: Table of the evaluations.
        tdm_saliency: A distribution over latent pixels; NaN where the TDM was not evaluated.
        sdm_saliency: The same of the SDM.
        sdm_weight: Share of the SDM in the noise: in the fusion stage the mask.
        x0: Latents that the noise predicts, for `FaceDiffuser.decode`.
    """

    steps: Steps
    tdm_saliency: Float[np.ndarray, "n b h w"]
    sdm_saliency: Float[np.ndarray, "n b h w"]
    sdm_weight: Float[np.ndarray, "n b h w"]
    x0: Float[np.ndarray, "n b h w 4"]


class Samples(Sequence):
    """Sampled images, as a sequence of PIL images.

    They are decoded once, when an image or `pixels` is first looked at. If sampling ran on the
    devices of several processes, all processes must look.

    Attributes:
        latents: Final latents, scaled as the UNets take them, [b, h, w, 4] float32.
        trace: Trace of all evaluations; None unless it was asked for.
    """

    def __init__(
        self,
        latents: Float[np.ndarray, "b h w 4"],
        decode: Decode,
        trace: SamplingTrace | None = None,
    ):
        self.latents = latents
        self.trace = trace
        self._decode = decode

    @cached_property
    def _decoded(self) -> Float[np.ndarray, "b h2 w2 3"]:
        return self._decode(self.latents)

    @cached_property
    def is_finite(self) -> Bool[np.ndarray, " b"]:
        """Whether each image is free of NaN and infinity."""
        return np.array(
            [
                bool(np.isfinite(latents).all() and np.isfinite(pixels).all())
                for latents, pixels in zip(self.latents, self._decoded, strict=True)
            ],
            bool,
        )

    @property
    def pixels(self) -> Float[np.ndarray, "b h2 w2 3"]:
        """Images as an array, [b, H, W, 3] float32 in [0, 1].

        Raises:
            NonFiniteError: An image has values that are NaN or infinite.
        """
        self._check(range(len(self)))
        return self._decoded

    def __len__(self) -> int:
        return len(self.latents)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...

    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...

    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        """Returns an image, or a list of images. Raises NonFiniteError."""
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            self._check(chosen)
            return [Image.fromarray(to_uint8(self._decoded[i])) for i in chosen]
        self._check([chosen])
        return Image.fromarray(to_uint8(self._decoded[chosen]))

    def __repr__(self) -> str:
        return f"<{len(self)} samples with latents of shape {self.latents.shape[1:]}>"

    def _check(self, chosen: Sequence[int]) -> None:
        if broken := [i for i in chosen if not self.is_finite[i]]:
            names = ", ".join(map(str, broken[:10])) + (", ..." if len(broken) > 10 else "")
            raise NonFiniteError(
                f"image {names} of {len(self)} has values that are NaN or infinite, expected "
                "finite ones: lower guidance_scale, compute in float32, or check the models"
            )


def join_samples(parts: Sequence[Samples], decode: Decode) -> Samples:
    """Returns the samples of several batches as one."""
    latents = np.concatenate([part.latents for part in parts])
    traces = [part.trace for part in parts if part.trace is not None]
    if not traces:
        return Samples(latents, decode)
    steps = traces[0].steps
    columns = {
        name: np.concatenate([getattr(trace, name) for trace in traces], axis=1)
        for name in SamplingTrace._fields
        if name != "steps"
    }
    return Samples(latents, decode, SamplingTrace(steps=steps, **columns))
