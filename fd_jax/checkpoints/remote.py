"""Models that lie elsewhere: configs are fetched when one is opened, weights when it is loaded."""

import abc
import dataclasses
import json
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from fd_jax.buckets import BucketPath, fetch
from fd_jax.checkpoints.diffusers import KINDS
from fd_jax.checkpoints.errors import abbreviate, file_errors
from fd_jax.checkpoints.torch.files import weight_files
from fd_jax.errors import CheckpointError
from fd_jax.files import to_path

_CONFIGS = re.compile(
    r"model_index\.json|config\.json|(unet|vae|text_encoder)/config\.json"
    r"|scheduler/scheduler_config\.json"
    r"|tokenizer/(vocab\.json|merges\.txt|tokenizer_config\.json|special_tokens_map\.json)"
)
_SINGLE = re.compile(r"[^/]+\.(safetensors|ckpt|bin)")
_FLAT_STEM = "model"


@dataclasses.dataclass(frozen=True)
class RemoteModel(abc.ABC):
    """Files of a model, some of which may be on this machine already.

    Attributes:
        name: Name of the model.
        place: Where it is, for messages.
        files: Names of all files.
    """

    name: str
    place: str
    files: tuple[str, ...]

    @abc.abstractmethod
    def fetch(self, names: Sequence[str]) -> Path:
        """Downloads files that are not here, and returns the path of the last.

        Raises:
            CheckpointError: They cannot be downloaded.
        """

    def open(self, file: str | None, open_local: Callable[[Path], Any]) -> Any:
        """Opens the model as `open_weights` opens what is on disk.

        Args:
            file: One file in it.
            open_local: Opens a file or folder, and returns its `Weights`.
        """
        single = [name for name in self.files if _SINGLE.fullmatch(name)]
        flat = [name for name in weight_files(_FLAT_STEM) if name in self.files]
        has_configs = any(_CONFIGS.fullmatch(name) for name in self.files)
        if file is None and not has_configs and (flat or len(single) == 1):
            file = (flat or single)[0]
        if file is not None:
            if file not in self.files:
                raise CheckpointError(
                    f"{self.name} {self.place} has no {file}, expected one of its files: "
                    f"{abbreviate(list(self.files))}"
                )
            path = to_path(f"{self.name}:{file}")
            return dataclasses.replace(open_local(self.fetch([file])), path=path)
        folder = self._fetch_configs()
        opened = open_local(folder)
        is_pipeline = any((folder / part).is_dir() for part in opened.parts)

        def load(parts: Collection[str], placement: Any, abstract: Any) -> Any:
            for part in parts:
                self._fetch_weights(part, part if is_pipeline else "")
            return opened.load(parts, placement, abstract)

        return dataclasses.replace(opened, path=to_path(self.name), _load=load)

    def _fetch_configs(self) -> Path:
        """Downloads configs and tokenizer; returns the folder that all files are in."""
        names = [name for name in self.files if _CONFIGS.fullmatch(name)]
        if not names:
            raise CheckpointError(
                f"{self.name} {self.place} holds {abbreviate(list(self.files)) or 'nothing'}, "
                f"expected a model of diffusers or transformers, or {self.name}:FILE"
            )
        folder = self.fetch(names)
        return folder.parents[names[-1].count("/")]

    def _fetch_weights(self, part: str, folder: str) -> None:
        """Downloads the weights of a network from one of the folders. Raises CheckpointError."""
        prefix = f"{folder}/" if folder else ""
        wanted = [prefix + name for name in weight_files(KINDS[part][0])]
        name = next((name for name in wanted if name in self.files), None)
        if name is None:
            held = [file for file in self.files if file.startswith(prefix)]
            raise CheckpointError(
                f"{self.name} {self.place} holds {abbreviate(held)}, expected one of {wanted}"
            )
        path = self.fetch([name])
        if name.endswith(".json"):
            with file_errors(f"{self.name}: {name} is no index of shards"):
                index = json.loads(path.read_bytes())
            shards = {*index.get("weight_map", {}).values()} if isinstance(index, dict) else ()
            self.fetch(sorted(prefix + shard for shard in shards if isinstance(shard, str)))


@dataclasses.dataclass(frozen=True)
class BucketModel(RemoteModel):
    """A model in a folder of a bucket."""

    folder: BucketPath

    def fetch(self, names: Sequence[str]) -> Path:
        with file_errors(f"{self.name} cannot be downloaded"):
            return fetch(self.folder, names) / names[-1]


def open_bucket(folder: BucketPath) -> BucketModel:
    """Lists the files of a folder in a bucket. Raises OSError."""
    return BucketModel(str(folder), "in the bucket", tuple(folder.files()), folder)
