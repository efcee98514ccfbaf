"""The noise schedule: how much of an image is left at each training timestep."""

import dataclasses
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float64

from fd_jax.config import Config, Range
from fd_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """The noise schedule, under the names of diffusers. The defaults are Stable Diffusion 1.5's."""

    beta_start: Annotated[float, Range(0, 1)] = 0.00085
    """Variance of the noise that the first timestep adds."""
    beta_end: Annotated[float, Range(0, 1)] = 0.012
    """Variance of the noise that the last timestep adds."""
    beta_schedule: Literal["linear", "scaled_linear"] = "scaled_linear"
    """Quantity that grows linearly: beta (linear), or its square root (scaled_linear)."""
    num_train_timesteps: Annotated[int, Range(1)] = 1000
    """Number of training timesteps."""
    steps_offset: Annotated[int, Range(0)] = 1
    """Offset added to the timesteps of DDIM and PNDM."""
    set_alpha_to_one: bool = False
    """Whether sampling ends without noise, or at the noise level of timestep 0."""
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    """Prediction of the UNet: the noise, or the velocity of arXiv:2202.00512."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise InputError(
                f"ScheduleConfig: beta_start is {self.beta_start} and beta_end is "
                f"{self.beta_end}, expected 0 < beta_start <= beta_end < 1"
            )


def alphas_cumprod(config: ScheduleConfig) -> Float64[np.ndarray, " n"]:
    """Share of the image's variance left at each timestep, falling from nearly 1 to nearly 0.

    The alpha-bar of DDPM, Eq. 4 of arXiv:2006.11239: x_t = sqrt(alpha_bar_t) * x_0 +
    sqrt(1 - alpha_bar_t) * noise.
    """
    start, end, num = config.beta_start, config.beta_end, config.num_train_timesteps
    if config.beta_schedule == "linear":
        betas = np.linspace(start, end, num)
    else:
        betas = np.linspace(start**0.5, end**0.5, num) ** 2
    return np.cumprod(1 - betas)


def final_alpha_cumprod(config: ScheduleConfig) -> float:
    """The `alphas_cumprod` of the sample after the last step of DDIM and PNDM."""
    return 1.0 if config.set_alpha_to_one else float(alphas_cumprod(config)[0])
