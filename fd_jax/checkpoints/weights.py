"""Opens weights in any supported layout, on disk, in a bucket, or by their name on the hub.

`open_weights` recognizes the folder of a training run, the released flat file or its folder, a
folder of diffusers or of one of its models, a CLIP as transformers stores it, a single file in
LDM's names, and a bundle. Each becomes a `Weights`: the networks it holds, their configs, and a
function that loads them.
"""

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fd_jax.buckets import BucketPath, fetch
from fd_jax.checkpoints import diffusers, flat_file, hub, single_file
from fd_jax.checkpoints.errors import abbreviate, file_errors
from fd_jax.checkpoints.file_checksums import check_files
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.remote import open_bucket
from fd_jax.checkpoints.run.manager import read_params
from fd_jax.checkpoints.run.model_json import is_run, read_model
from fd_jax.checkpoints.torch.files import open_tensors
from fd_jax.errors import CheckpointError
from fd_jax.files import to_path
from fd_jax.schedule import ScheduleConfig
from fd_jax.types import Params

_EXPECTED = (
    "the folder of a training run, a released checkpoint, a model of diffusers or transformers, "
    "a single file of Stable Diffusion 1.5, or a bundle"
)
# Networks in the folder of a Stable Diffusion, each in the subfolder of its name.
COMPONENTS = ("unet", "vae", "text_encoder")
# Models of a bundle, by the task that trained them.
BUNDLED = {"sdm": "sdm.safetensors", "tdm": "tdm.safetensors"}


class LoadedParams(NamedTuple):
    """Parameters of networks, and tensors stored beside them that are not weights.

    Attributes:
        params: Parameters by network.
        ignored_tensors: Names of buffers, such as position ids.
    """

    params: dict[str, Params]
    ignored_tensors: list[str]


_Load = Callable[[Collection[str], Placement, Any], LoadedParams]


def _holds_nothing(parts: Collection[str], *_: object) -> LoadedParams:
    if parts:
        raise CheckpointError(f"a config holds no weights, expected those of {list(parts)}")
    return LoadedParams({}, [])


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Networks stored at one path, none of them read yet.

    Attributes:
        path: File or folder, for messages.
        parts: Names of the networks whose weights are stored: `unet`, `vae`, `text_encoder`,
            `image_encoder`, `subject_fusion`.
        architecture: Configs by network. May name networks whose weights are elsewhere; a flat
            file has none.
        schedule: Noise schedule, if one is stored.
        tokenizer: Folder of a tokenizer, if one is stored.
        task: Task of the training run, if this is one.
    """

    path: Path
    parts: tuple[str, ...] = ()
    architecture: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    schedule: ScheduleConfig | None = None
    tokenizer: Path | None = None
    task: str | None = None
    _load: _Load = dataclasses.field(default=_holds_nothing, repr=False)

    def load(
        self,
        parts: Collection[str],
        placement: Placement,
        abstract: Mapping[str, Params] | None = None,
    ) -> LoadedParams:
        """Loads the parameters of some networks.

        Args:
            parts: Networks to load.
            placement: Dtype and sharding of the parameters.
            abstract: Shapes of all networks that may be stored. A flat file that holds others is
                refused, so that an SDM is not taken for a TDM. Only a training run can be loaded
                without, as it names its arrays as the networks do.

        Raises:
            CheckpointError: Weights are missing, damaged, or of another architecture.
        """
        if abstract is None and self.task is None:
            raise ValueError(f"{self.path} is no training run, expected the shapes of its networks")
        return self._load(parts, placement, abstract)


def open_weights(
    where: str | os.PathLike,
    *,
    task: str | None = None,
    ema: bool = True,
    step: int | None = None,
) -> Weights:
    """Opens a checkpoint of any layout; reads names and configs, but no weights.

    Args:
        where: File or folder, also in a bucket; or the name of a model on the Hugging Face hub,
            `user/repo` or `user/repo:file`, where nothing of that name is here.
        task: Task that a training run has to train; the model to open of a bundle, which is
            the `sdm` by default.
        ema: Whether to load the EMA parameters of a training run or a single file, if it has them.
        step: Step of the training run's checkpoint, by default the newest that is not damaged.

    Raises:
        InputError: The path is a URL of something other than a bucket.
        CheckpointError: There is no checkpoint, it is damaged, or it is a run of another task.
        ConfigError: A config describes an architecture that is not supported.
    """
    path = to_path(where)
    if isinstance(path, BucketPath):
        with file_errors(f"{path} cannot be read"):
            return _open_in_bucket(path, task, ema=ema, step=step)
    if step is None and (name := hub.parse_hub_name(path)) is not None:
        repo, file = name
        return hub.open_repository(repo).open(file, partial(open_weights, task=task, ema=ema))
    if path.is_dir() and is_run(path):
        return _open_run(path, task, ema=ema, step=step)
    if step is not None:
        raise CheckpointError(f"{path} is no training run, expected one that has step {step}")
    if path.is_file():
        return _open_file(path, ema=ema)
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist, expected {_EXPECTED}")
    if any((path / name).is_file() for name in BUNDLED.values()) and (path / "base").is_dir():
        return _open_bundle(path, "sdm" if task is None else task)
    if (path / "model_index.json").is_file() or _components(path):
        return _open_pipeline(path)
    if (path / "config.json").is_file():
        return _open_model(path)
    if flat_file.is_flat_folder(path):
        return _open_flat_file(path)
    with file_errors(f"{path}: cannot list the folder"):
        held = sorted(entry.name for entry in path.iterdir())
    raise CheckpointError(f"{path} holds {abbreviate(held) or 'nothing'}, expected {_EXPECTED}")


def _open_in_bucket(path: BucketPath, task: str | None, *, ema: bool, step: int | None) -> Weights:
    if is_run(path):  # read from there, by each process what it needs
        return _open_run(path, task, ema=ema, step=step)
    if step is not None:
        raise CheckpointError(f"{path} is no training run, expected one that has step {step}")
    if path.is_file():
        return dataclasses.replace(_open_file(fetch(path), ema=ema), path=path)
    model = open_bucket(path)
    if not model.files:
        raise CheckpointError(f"{path} does not exist, expected {_EXPECTED}")
    return model.open(None, partial(open_weights, task=task, ema=ema))


def _open_run(path: Path, task: str | None, *, ema: bool, step: int | None) -> Weights:
    model = read_model(path)
    if task not in (None, model.task):
        raise CheckpointError(f"{path} trains a {model.task}, expected a run that trains a {task}")

    def load(
        parts: Collection[str], placement: Placement, abstract: Mapping[str, Params] | None
    ) -> LoadedParams:
        found = read_params(
            path, placement=placement, ema=ema, step=step, wanted=parts, abstract=abstract
        )
        return LoadedParams(found, [])

    return Weights(
        path=path,
        parts=model.parts,
        architecture=model.architecture,
        schedule=model.schedule,
        tokenizer=_tokenizer(path),
        task=model.task,
        _load=load,
    )


def _open_file(path: Path, *, ema: bool) -> Weights:
    tensors = open_tensors(path)
    if (found := single_file.relative(tensors)) is not None:
        raise CheckpointError(f"{path} is {found}, expected a model of Stable Diffusion 1.5")
    if not single_file.is_single_file(tensors):
        return _flat_weights(path, flat_file.from_tensors(path, tensors))
    opened = single_file.SingleFile(path, tensors)
    architecture = opened.architecture
    return Weights(
        path=path,
        parts=opened.parts,
        architecture=architecture,
        # The file has none, and Stable Diffusion 1.5's are known.
        schedule=ScheduleConfig() if architecture else None,
        _load=partial(_load_single_file, opened, ema),
    )


def _load_single_file(
    opened: single_file.SingleFile,
    ema: bool,
    parts: Collection[str],
    placement: Placement,
    abstract: Mapping[str, Params],
) -> LoadedParams:
    return LoadedParams(*single_file.load_parts(opened, parts, abstract, placement, ema=ema))


def _open_flat_file(path: Path) -> Weights:
    return _flat_weights(path, flat_file.open_flat_file(path))


def _flat_weights(path: Path, opened: flat_file.FlatFile) -> Weights:
    load = partial(_load_flat_file, opened)
    return Weights(path=path, parts=opened.parts, tokenizer=_tokenizer(path), _load=load)


def _load_flat_file(
    opened: flat_file.FlatFile,
    parts: Collection[str],
    placement: Placement,
    abstract: Mapping[str, Params],
) -> LoadedParams:
    return LoadedParams(*flat_file.load_parts(opened, parts, abstract, placement))


def _open_pipeline(path: Path) -> Weights:
    parts = _components(path)
    schedule = None
    if (path / "scheduler").is_dir():
        schedule = diffusers.read_schedule(path / "scheduler")
    return Weights(
        path=path,
        parts=parts,
        architecture={part: diffusers.read_config(part, path / part) for part in parts},
        schedule=schedule,
        tokenizer=_tokenizer(path),
        _load=partial(_load_folders, {part: path / part for part in parts}),
    )


def _open_model(path: Path) -> Weights:
    part = diffusers.part_in(path)
    return Weights(
        path=path,
        parts=(part,),
        architecture={part: diffusers.read_config(part, path)},
        tokenizer=_tokenizer(path),
        _load=partial(_load_folders, {part: path}),
    )


def _load_folders(
    folders: Mapping[str, Path],
    parts: Collection[str],
    placement: Placement,
    abstract: Mapping[str, Params],
) -> LoadedParams:
    if missing := [part for part in parts if part not in folders]:
        held = ", ".join(map(str, folders.values()))
        raise CheckpointError(f"{held} hold {list(folders)}, expected the weights of {missing} too")
    params, ignored = {}, []
    for part in parts:
        loaded = diffusers.load_folder(part, folders[part], abstract[part], placement)
        params[part] = loaded[0]
        ignored += loaded[1]
    return LoadedParams(params, ignored)


def _open_bundle(path: Path, task: str) -> Weights:
    if task not in BUNDLED:
        raise CheckpointError(f"{path} holds an SDM and a TDM, expected a run that trains a {task}")
    check_files(path, "*.json")
    base, clip = _open_pipeline(path / "base"), _open_model(path / "clip")
    model = _open_flat_file(path / BUNDLED[task])

    def load(
        parts: Collection[str], placement: Placement, abstract: Mapping[str, Params]
    ) -> LoadedParams:
        own = [part for part in parts if part != "vae"]
        shared = [part for part in parts if part == "vae"]
        for pattern in [BUNDLED[task]] * bool(own) + ["base/vae/*"] * bool(shared):
            check_files(path, pattern)
        params, ignored = model.load(own, placement, abstract)
        more = base.load(shared, placement, abstract)
        return LoadedParams(params | more.params, ignored + more.ignored_tensors)

    return Weights(
        path=path,
        parts=(*model.parts, "vae"),
        architecture={**base.architecture, **clip.architecture},
        schedule=base.schedule,
        tokenizer=base.tokenizer,
        _load=load,
    )


def _components(path: Path) -> tuple[str, ...]:
    return tuple(part for part in COMPONENTS if (path / part).is_dir())


def _tokenizer(path: Path) -> Path | None:
    folder = path / "tokenizer"
    if not folder.is_dir():
        return None
    return fetch(folder) if isinstance(folder, BucketPath) else folder
