"""Which parameters train, how fast, and by what."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from fd_jax.config import Config
from fd_jax.errors import InputError
from fd_jax.params import Flat


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """AdamW (arXiv:1711.05101), as the released training has it."""

    learning_rate: float = 1e-5
    """Of the parts whose rate is 1."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up: stay, or fall to 0 at the last step."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 1e-2
    """Decoupled, of all parameters that train."""
    clip_norm: float | None = 1.0
    """Norm of the gradient of all parameters, above which it is scaled down."""
    ema_decay: float | None = 0.9999
    """Of the moving average of the parameters, which is what is sampled from; None keeps none.
    After n steps it is at most (1 + n) / (10 + n)."""
    train: tuple[tuple[str, float], ...] = (("unet/", 1.0),)
    """Which parameters train: patterns, searched for in paths such as
    image_encoder/layers/22/mlp/fc1/kernel, and the factor of the learning rate. The first pattern
    found counts; what no pattern is found in is frozen, as is what has the factor 0. A number in
    the path may also be counted from the end: image_encoder/layers/-1/ is the last layer."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("learning_rate", "warmup_steps", "weight_decay"):
            self.require(name, 0)
        for name in ("b1", "b2"):
            self.require(name, 0, 1)
        self.require("ema_decay", 0, 1)
        for name in ("eps", "clip_norm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"OptimizerConfig: {name} is {value}, expected more than 0")
        for pattern, factor in self.train:
            if factor < 0:
                raise InputError(
                    f"train: the factor of {pattern!r} is {factor}, expected 0 or more"
                )
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"train: {pattern!r} is no pattern: {error}") from error


def rates(config: OptimizerConfig, paths: Iterable[str]) -> dict[str, float]:
    """Returns the learning rate's factor of all parameters that train, by path.

    Args:
        config: Holds the table.
        paths: Of all parameters.

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
    """The paths with their numbers counted from the end."""
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
    """Returns the learning rate as a function of the steps done so far."""
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
    """Returns clipping and AdamW for a flat dict of the parameters that train.

    Args:
        config: Config.
        factors: `rates`.
        num_steps: At which a falling learning rate ends.
    """
    clip = optax.identity() if config.clip_norm is None else _clip(config.clip_norm)
    return optax.chain(
        clip,
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay),
        optax.stateless(
            lambda updates, _: {path: factors[path] * u for path, u in updates.items()}
        ),
        optax.scale_by_learning_rate(learning_rate(config, num_steps)),
    )


def _clip(norm: float) -> optax.GradientTransformation:
    """Clipping as PyTorch has it, with its epsilon."""

    def scale(updates: Flat, _: Flat) -> Flat:
        factor = jnp.minimum(1.0, norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda u: factor * u, updates)

    return optax.stateless(scale)


def update_ema(decay: float, ema: Flat, params: Flat, step: Int[Array, ""]) -> Flat:
    """Returns the moving average after a step, `step` of them done before.

    It follows closely at first, as diffusers' does.
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
