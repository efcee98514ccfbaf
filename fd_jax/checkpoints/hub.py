"""Models by their name on the Hugging Face hub, `user/repo` or `user/repo:file`.

The cache, the token and the offline switches are those of `huggingface_hub` (HF_HOME, HF_TOKEN,
HF_HUB_OFFLINE, HF_ENDPOINT). Only what is needed is downloaded: configs when a model is opened,
weights when they are loaded.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from fd_jax.checkpoints.diffusers import KINDS
from fd_jax.checkpoints.errors import abbreviate, file_errors
from fd_jax.checkpoints.torch.files import weight_files
from fd_jax.errors import CheckpointError

_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<file>[\w./-]+))?")
_CONFIGS = re.compile(
    r"model_index\.json|config\.json|(unet|vae|text_encoder)/config\.json"
    r"|scheduler/scheduler_config\.json"
    r"|tokenizer/(vocab\.json|merges\.txt|tokenizer_config\.json|special_tokens_map\.json)"
)
_SINGLE = re.compile(r"[^/]+\.(safetensors|ckpt|bin)")
_FLAT_STEM = "model"


@dataclasses.dataclass(frozen=True)
class HubModel:
    """A repository of the hub at one revision, of which some files are in the cache.

    Attributes:
        repo: Name, `user/repo`.
        revision: Commit of all files.
        files: Names of all files; without a connection, of those in the cache.
        is_offline: Whether only the cache is there.
    """

    repo: str
    revision: str
    files: tuple[str, ...]
    is_offline: bool

    def fetch(self, names: Sequence[str]) -> Path:
        """Downloads files that the cache lacks, and returns the path of the last.

        Raises:
            CheckpointError: The hub cannot be reached, or refuses.
        """
        path = Path()
        with _hub_errors(self.repo):
            for name in names:
                found = _api().hf_hub_download(
                    self.repo, name, revision=self.revision, local_files_only=self.is_offline
                )
                path = Path(str(found))
        return path

    def fetch_configs(self) -> Path:
        """Downloads configs and tokenizer; returns the folder that all files are in."""
        names = [name for name in self.files if _CONFIGS.fullmatch(name)]
        if not names:
            raise CheckpointError(
                f"{self.repo} on the hub holds {abbreviate(list(self.files)) or 'nothing'}, "
                f"expected a model of diffusers or transformers, or {self.repo}:FILE"
            )
        folder = self.fetch(names)
        return folder.parents[names[-1].count("/")]

    def fetch_weights(self, part: str, folder: str) -> None:
        """Downloads the weights of a network from one of the folders. Raises CheckpointError."""
        prefix = f"{folder}/" if folder else ""
        wanted = [prefix + name for name in weight_files(KINDS[part][0])]
        name = next((name for name in wanted if name in self.files), None)
        if name is None:
            held = [file for file in self.files if file.startswith(prefix)]
            where = "the cache of the hub's files" if self.is_offline else "the hub"
            raise CheckpointError(
                f"{self.repo} in {where} holds {abbreviate(held)}, expected one of {wanted}"
            )
        path = self.fetch([name])
        if name.endswith(".json"):
            with file_errors(f"{self.repo}: {name} is no index of shards"):
                index = json.loads(path.read_bytes())
            shards = {*index.get("weight_map", {}).values()} if isinstance(index, dict) else ()
            self.fetch(sorted(prefix + shard for shard in shards if isinstance(shard, str)))


def parse_hub_name(where: str | os.PathLike) -> tuple[str, str | None] | None:
    """Returns repository and file of a name on the hub, or None if it is none.

    A path that exists here is none, and neither are paths with more levels.
    """
    text = os.fspath(where)
    found = _NAME.fullmatch(text)
    if found is None or os.path.lexists(text) or ".." in text:
        return None
    return found["repo"], found["file"]


def open_repository(repo: str) -> HubModel:
    """Lists the files of a repository, of the hub or else of the cache. Raises CheckpointError."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        OfflineModeIsEnabled,
    )

    try:
        info = _api().model_info(repo)
        files = tuple(sorted(file.rfilename for file in info.siblings or ()))
        return HubModel(repo, str(info.sha), files, is_offline=False)
    except HFValidationError as error:  # of a name that no model can have, such as a--b/c
        raise _refused(repo, error) from error
    except (OfflineModeIsEnabled, HTTPError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise _refused(repo, error) from error
        return _cached(repo, error)


def _cached(repo: str, reason: Exception) -> HubModel:
    """Returns the newest revision of a repository in the cache, as the hub cannot be reached."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    why = " ".join(str(reason).split())[:300] or type(reason).__name__
    try:
        found = [held for held in scan_cache_dir().repos if held.repo_id == repo]
    except CacheNotFound:
        found = []
    revisions = [each for held in found if held.repo_type == "model" for each in held.revisions]
    if not revisions:
        raise CheckpointError(
            f"{repo} is no file or folder here, nor in the cache of the hub's files, and the hub "
            f"cannot be reached: {why}"
        ) from reason
    newest = max(revisions, key=lambda each: each.last_modified)
    folder = newest.snapshot_path
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return HubModel(repo, newest.commit_hash, tuple(sorted(files)), is_offline=True)


def open_on_hub(repo: str, file: str | None, open_local: Callable[[Path], Any]) -> Any:
    """Opens a model of the hub as `open_weights` opens what is on disk.

    Args:
        repo: Name of the repository.
        file: One file in it.
        open_local: Opens a file or folder, and returns its `Weights`.
    """
    model = open_repository(repo)
    single = [name for name in model.files if _SINGLE.fullmatch(name)]
    flat = [name for name in weight_files(_FLAT_STEM) if name in model.files]
    has_configs = any(_CONFIGS.fullmatch(name) for name in model.files)
    if file is None and not has_configs and (flat or len(single) == 1):
        file = (flat or single)[0]
    if file is not None:
        if file not in model.files:
            raise CheckpointError(
                f"{repo} on the hub has no {file}, expected one of its files: "
                f"{abbreviate(list(model.files))}"
            )
        return dataclasses.replace(open_local(model.fetch([file])), path=Path(f"{repo}:{file}"))
    folder = model.fetch_configs()
    opened = open_local(folder)
    is_pipeline = any((folder / part).is_dir() for part in opened.parts)

    def load(parts: Collection[str], placement: Any, abstract: Any) -> Any:
        for part in parts:
            model.fetch_weights(part, part if is_pipeline else "")
        return opened.load(parts, placement, abstract)

    return dataclasses.replace(opened, path=Path(repo), _load=load)


def _api() -> Any:
    from huggingface_hub import HfApi

    # Read again here: huggingface_hub reads it when it is imported.
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turns errors of a download into CheckpointError."""
    from huggingface_hub import errors

    try:
        yield
    except errors.RepositoryNotFoundError as error:
        raise _refused(repo, error) from error
    except (
        errors.HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        errors.EntryNotFoundError,
        OSError,
    ) as error:
        why = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{repo} cannot be downloaded from the hub: {why}") from error


def _refused(repo: str, error: Exception) -> CheckpointError:
    from huggingface_hub.errors import GatedRepoError

    if isinstance(error, GatedRepoError):
        return CheckpointError(
            f"{repo} is gated: accept its terms on its page of the hub, then `hf auth login` or "
            "set HF_TOKEN"
        )
    return CheckpointError(
        f"{repo} is neither a file or folder here nor a model on the hub; if it is private, log in "
        "with `hf auth login` or set HF_TOKEN"
    )
