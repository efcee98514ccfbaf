"""The optimizer: learning rates, AdamW, clipping and EMA."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from fd_jax.config import Config, Range
from fd_jax.errors import InputError
from fd_jax.params import Flat


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """AdamW (arXiv:1711.05101), with the released hyper-parameters."""

    learning_rate: Annotated[float, Range(0)] = 1e-5
    """Base learning rate, multiplied by each parameter's factor in `train`."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or falling to 0 at the last step."""
    warmup_steps: Annotated[int, Range(0)] = 0
    """Steps during which the learning rate rises from 0."""
    b1: Annotated[float, Range(0, 1)] = 0.9
    """Decay of the first moment."""
    b2: Annotated[float, Range(0, 1)] = 0.999
    """Decay of the second moment."""
    eps: Annotated[float, Range(above=0)] = 1e-8
    """Term added to the square root of the second moment."""
    weight_decay: Annotated[float, Range(0)] = 1e-2
    """Decoupled weight decay of all parameters that train."""
    clip_norm: Annotated[float, Range(above=0)] | None = 1.0
    """Global norm that gradients are clipped to; None does not clip."""
    ema_decay: Annotated[float, Range(0, 1)] | None = 0.9999
    """Decay of the EMA parameters, which sampling uses; None keeps none. After n steps it is at
    most (1 + n) / (10 + n)."""
    train: tuple[tuple[str, Annotated[float, Range(0)]], ...] = (("unet/", 1.0),)
    """Parameters that train: pairs of a regular expression and a learning-rate factor. The first
    expression found in a path such as image_encoder/layers/22/mlp/fc1/kernel counts. Parameters
    without one, or with the factor 0, are frozen. Layers may be counted from the end:
    image_encoder/layers/-1/ is the last one."""

    def __post_init__(self):
        super().__post_init__()
        for pattern, _ in self.train:
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"train: {pattern!r} is no pattern: {error}") from error


def learning_rate_factors(config: OptimizerConfig, paths: Iterable[str]) -> dict[str, float]:
    """Returns the learning-rate factor of each parameter that trains, by path.

    Args:
        config: Holds the table of patterns.
        paths: Paths of all parameters.

    Raises:
        InputError: A pattern is found nowhere, or nothing trains.
    """
    names = {path: f"{path} {from_end}" for path, from_end in _from_end(list(paths)).items()}
    found = {}
    for path, name in names.items():
        factors = [factor for pattern, factor in config.train if re.search(pattern, name)]
        if factors and factors[0]:
            found[path] = factors[0]
    parts = sorted({path.split("/")[0] for path in names})
    for pattern, _ in config.train:
        if not any(re.search(pattern, name) for name in names.values()):
            raise InputError(f"train: {pattern!r} is found in no path; the parts are {parts}")
    if not found:
        raise InputError(f"train is {config.train}, by which nothing trains; the parts are {parts}")
    return found


def _from_end(paths: list[str]) -> dict[str, str]:
    """Returns the paths with their numbers counted from the end."""
    counts: dict[tuple[str, ...], int] = collections.defaultdict(int)
    for path in paths:
        levels = tuple(path.split("/"))
        for i, level in enumerate(levels):
            if level.isdecimal():
                counts[levels[:i]] = max(counts[levels[:i]], int(level) + 1)

    def renumbered(path: str) -> str:
        levels = tuple(path.split("/"))
        return "/".join(
            str(int(level) - counts[levels[:i]]) if level.isdecimal() else level
            for i, level in enumerate(levels)
        )

    return {path: renumbered(path) for path in paths}


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of steps done."""
    peak, rest = config.learning_rate, max(num_steps - config.warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }[config.schedule]
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    # The first step already moves.
    return optax.join_schedules([lambda step: warmup(step + 1), after], [config.warmup_steps])


def make_optimizer(
    config: OptimizerConfig, factors: Mapping[str, float], num_steps: int
) -> optax.GradientTransformation:
    """Builds clipping and AdamW for a flat dict of the parameters that train.

    Args:
        config: Config.
        factors: Learning-rate factors by path.
        num_steps: Step at which a falling learning rate reaches 0.
    """
    clip = optax.identity() if config.clip_norm is None else _clip(config.clip_norm)

    def scale(updates: Any, _: Any) -> Any:
        return {path: factors[path] * update for path, update in updates.items()}

    return optax.chain(
        clip,
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay),
        optax.stateless(scale),
        optax.scale_by_learning_rate(learning_rate(config, num_steps)),
    )


def _clip(norm: float) -> optax.GradientTransformation:
    """Clips by the global norm as PyTorch does, with its epsilon."""

    def scale(updates: Any, _: Any) -> Any:
        factor = jnp.minimum(1.0, norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda u: factor * u, updates)

    return optax.stateless(scale)


def update_ema(decay: float, ema: Flat, params: Flat, step: Int[Array, ""]) -> Flat:
    """Updates the EMA parameters after a step, with a decay that grows at first, as in diffusers.

    Args:
        decay: Decay in the limit.
        ema: EMA parameters.
        params: Parameters after the step.
        step: Number of steps done before.
    """
    current = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: current * old + (1 - current) * new, ema, params)
