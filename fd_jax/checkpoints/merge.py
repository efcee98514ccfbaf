"""What several opened checkpoints give together: networks, configs, schedule and tokenizer."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from fd_jax import assets
from fd_jax.architecture import Architecture, CLIPVisionConfig
from fd_jax.checkpoints.weights import COMPONENTS, Weights
from fd_jax.config import differences, to_json
from fd_jax.errors import CheckpointError
from fd_jax.schedule import ScheduleConfig


def find_tokenizer(sources: Sequence[Weights]) -> Path:
    """Returns the first tokenizer that a source brings, by default CLIP's own."""
    found = (source.tokenizer for source in sources if source.tokenizer is not None)
    return next(found, assets.TOKENIZER)


def find_parts(sources: Sequence[Weights]) -> dict[str, Weights]:
    """Returns each network's source: the first that holds its weights."""
    found: dict[str, Weights] = {}
    for source in sources:
        for part in source.parts:
            found.setdefault(part, source)
    return found


def merge(
    sources: Sequence[Weights],
    *,
    needed: Collection[str] = COMPONENTS,
    expected: str = "a source that has them",
    ignored: Collection[str] = (),
) -> tuple[Architecture, ScheduleConfig]:
    """Returns architecture and noise schedule, on which all sources have to agree.

    Args:
        sources: Weights in order of precedence: each config is taken from the first that has it.
            A config file is a `Weights` without parts.
        needed: Networks whose config has to be given. Without one, the image encoder is of the
            usual size, with embeddings as wide as the text encoder's.
        expected: Continues the message about missing configs.
        ignored: Names of fields that may differ, besides `sample_size`: the resolution that a
            model was trained at changes no parameter.

    Raises:
        CheckpointError: A config is missing, or two sources disagree.
        ConfigError: The networks do not fit together.
    """
    found: dict[str, Any] = {}
    origins: dict[str, Weights] = {}
    may_differ = ("sample_size", *ignored)
    for source in sources:
        configs = dict(source.architecture)
        if source.schedule is not None:
            configs["scheduler"] = source.schedule
        for name, config in configs.items():
            first = origins.setdefault(name, source)
            _check_same(source, first, name, config, found.setdefault(name, config), may_differ)
    missing = [name for name in (*needed, "scheduler") if name not in found]
    if missing:
        given = f"{' and '.join(str(source.path) for source in sources)} give no"
        given = given if sources else "there is no"
        raise CheckpointError(f"{given} config of {missing}, expected {expected}")
    schedule = found.pop("scheduler")
    if "image_encoder" not in found:
        found["image_encoder"] = CLIPVisionConfig(projection_dim=found["text_encoder"].hidden_size)
    architecture = Architecture(**found)
    architecture.check()
    return architecture, schedule


def _check_same(
    source: Weights, first: Weights, name: str, config: Any, expected: Any, ignored: Sequence[str]
) -> None:
    if source is first:
        return
    changed = [
        f"{field} is {new!r}, expected {old!r}"
        for field, (old, new) in differences(to_json(expected), to_json(config), name).items()
        if not field.endswith(tuple(ignored))
    ]
    if changed:
        raise CheckpointError(f"{source.path} does not fit {first.path}: {', '.join(changed)}")
