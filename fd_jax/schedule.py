"""The noise schedule: how much of an image is left at each training timestep."""

import dataclasses

import numpy as np
from jaxtyping import Float64

from fd_jax.errors import InputError

BETA_SCHEDULES = ("linear", "scaled_linear")
PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The noise schedule, under the names of diffusers. The defaults are Stable Diffusion 1.5's."""

    beta_start: float = 0.00085  # variance of the noise that the first timestep adds
    beta_end: float = 0.012  # the same for the last timestep
    beta_schedule: str = "scaled_linear"  # what grows linearly: beta ("linear") or its square root
    num_train_timesteps: int = 1000
    steps_offset: int = 1  # added to the timesteps of DDIM and PNDM
    set_alpha_to_one: bool = False  # whether sampling ends at no noise, or at that of timestep 0
    prediction_type: str = "epsilon"  # what a UNet predicts: the noise, or v of arXiv:2202.00512

    def __post_init__(self):
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise InputError(
                f"beta_start is {self.beta_start} and beta_end is {self.beta_end}, "
                "expected 0 < beta_start <= beta_end < 1"
            )
        if self.beta_schedule not in BETA_SCHEDULES:
            raise InputError(
                f"beta_schedule is {self.beta_schedule!r}, expected one of {BETA_SCHEDULES}"
            )
        if self.num_train_timesteps < 1:
            raise InputError(
                f"num_train_timesteps is {self.num_train_timesteps}, expected at least 1"
            )
        if self.steps_offset < 0:
            raise InputError(f"steps_offset is {self.steps_offset}, expected at least 0")
        if self.prediction_type not in PREDICTION_TYPES:
            raise InputError(
                f"prediction_type is {self.prediction_type!r}, expected one of {PREDICTION_TYPES}"
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
