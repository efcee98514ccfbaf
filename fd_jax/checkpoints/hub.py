"""Models by their name on the Hugging Face hub, `user/repo` or `user/repo:file`.

The cache, the token and the offline switches are those of `huggingface_hub` (HF_HOME, HF_TOKEN,
HF_HUB_OFFLINE, HF_ENDPOINT). Only what is needed is downloaded: configs when a model is opened,
weights when they are loaded.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fd_jax.checkpoints.remote import RemoteModel
from fd_jax.errors import CheckpointError

_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<file>[\w./-]+))?")


@dataclasses.dataclass(frozen=True)
class HubModel(RemoteModel):
    """A repository of the hub at one revision, of which some files are in the cache.

    Its `files` are, without a connection, those in the cache.

    Attributes:
        revision: Commit of all files.
        is_offline: Whether only the cache is there.
    """

    revision: str
    is_offline: bool

    def fetch(self, names: Sequence[str]) -> Path:
        """Downloads files that the cache lacks, and returns the path of the last.

        Raises:
            CheckpointError: The hub cannot be reached, or refuses.
        """
        path = Path()
        with _hub_errors(self.name):
            for name in names:
                found = _api().hf_hub_download(
                    self.name, name, revision=self.revision, local_files_only=self.is_offline
                )
                path = Path(str(found))
        return path


def parse_hub_name(where: str | os.PathLike) -> tuple[str, str | None] | None:
    """Returns repository and file of a name on the hub, or None if it is none.

    A path that exists here is none, and neither are paths with more levels, nor one whose folder is
    here: that is a mistyped path.
    """
    text = os.fspath(where)
    found = _NAME.fullmatch(text)
    if found is None or os.path.lexists(text) or ".." in text:
        return None
    if os.path.isdir(text.split("/")[0]):
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
        return HubModel(repo, "on the hub", files, str(info.sha), is_offline=False)
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
    place = "in the cache of the hub's files"
    return HubModel(repo, place, tuple(sorted(files)), newest.commit_hash, is_offline=True)


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
