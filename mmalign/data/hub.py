"""Datasets of parquet shards on the Hugging Face hub, read where they are."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mmalign.data.remote import HTTP_ERROR, RemoteFiles
from mmalign.data.shards import Location, find_shards, of_split, split_of
from mmalign.training.config import DataConfig

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
HUB_SOURCES = ("pickapic", "canonical", "genai_bench", "auto")
_FILES = (".parquet", ".json", ".jsonl", ".csv", ".tar")


def is_hub_id(path: str) -> bool:
    """Whether ``path`` looks like ``owner/name`` and nothing of that name is here."""
    return bool(_ID.fullmatch(path)) and not path.endswith(_FILES) and not Path(path).exists()


def locate(config: DataConfig) -> list[Location]:
    """Parquet files of ``data.path``: a file, a folder, a glob, or a dataset id of the hub; of ``data.split``."""
    if is_hub_id(config.path):
        return hub_shards(config)
    if config.revision is not None:
        raise ValueError(f"data.revision={config.revision} has no meaning for the local data.path={config.path}")
    return [Location(path, name) for path, name in find_shards(config.path, config.split)]


def groups_to_keep(config: DataConfig) -> int:
    """Row groups that rows are asked from at a time, and one more for the next."""
    return (config.shuffle_window if config.shuffle == "blocks" else 1) + 1


def connect(repo: str, revision: str | None) -> "tuple[AbstractFileSystem, str]":
    """The hub's filesystem, and the folder in it that holds ``repo`` at the commit that ``revision`` now is."""
    from huggingface_hub import HfApi, HfFileSystem

    commit = HfApi().dataset_info(repo, revision=revision).sha
    return HfFileSystem(), f"datasets/{repo}@{commit}"


def hub_shards(config: DataConfig) -> list[Location]:
    """Parquet shards of the dataset ``config.path``, of ``data.split`` where it is given, in order of their names.

    Raises ValueError where the hub cannot be reached, there is no such dataset, revision or split, it is gated, holds
    no parquet, or holds several splits and none was chosen.
    """
    repo = config.path
    try:
        filesystem, root = connect(repo, config.revision)
        found: Any = filesystem.find(root, detail=True)
    except (OSError, HTTP_ERROR, HFValidationError) as error:
        raise ValueError(explain(error, repo, config.revision)) from error
    remote = RemoteFiles(f"dataset {repo}", filesystem)
    locations = [
        Location(PurePosixPath(path), str(PurePosixPath(path).relative_to(root)), remote, _mark(info))
        for path, info in sorted(found.items())
        if path.endswith(".parquet")
    ]
    if not locations:
        raise ValueError(f"dataset {repo} holds no .parquet file; download it and give its folder as data.path")
    return _of_split(locations, config)


def explain(error: BaseException, repo: str, revision: str | None) -> str:
    """What went wrong with dataset ``repo`` and what to type."""
    download = f"hf download {repo} --repo-type dataset --local-dir FOLDER"
    if isinstance(error, GatedRepoError) or (_status(error) in (401, 403) and not _is_missing(error)):
        return (
            f"dataset {repo!r} is gated: accept its conditions on its page, then log in with `hf auth login` "
            "(or set HF_TOKEN), or set data.path to a folder that holds it"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"dataset {repo!r} has no revision {revision!r}; leave data.revision out for the newest"
    if _is_missing(error):
        return (
            f"data.path={repo}: there is no file or folder of that name here, and no public dataset on the hub. Check "
            "the spelling (Pick-a-Pic v2 left the hub in 2025; liuhuohuo2/pick-a-pic-v2 mirrored it); for a private "
            "dataset log in with `hf auth login`"
        )
    if isinstance(error, OfflineModeIsEnabled) or _status(error) is None:
        return (
            f"data.path={repo}: nothing of that name is here, and the hub cannot be reached (offline, or "
            f"HF_HUB_OFFLINE is set): {error}. Where there is a network, run `{download}` and set data.path=FOLDER"
        )
    return f"dataset {repo!r} could not be listed: {error}"


def _is_missing(error: BaseException) -> bool:
    # GatedRepoError is a RepositoryNotFoundError too.
    return isinstance(error, RepositoryNotFoundError | HFValidationError) and not isinstance(error, GatedRepoError)


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None


def _mark(info: Mapping[str, Any]) -> str:
    """What changes with a file's contents: its digest, or at least its size."""
    lfs = info.get("lfs")
    digest = (lfs["sha256"] if lfs else None) or info.get("blob_id")
    return f"{info['size']}:{digest}"


def _of_split(locations: list[Location], config: DataConfig) -> list[Location]:
    named = [(location, location.name) for location in locations]
    if config.split is not None:
        return [location for location, _ in of_split(named, config.split, f"dataset {config.path}")]
    known = sorted({split for _, name in named if (split := split_of(name))})
    if len(known) > 1:
        wanted = "train" if "train" in known else known[0]
        raise ValueError(
            f"dataset {config.path} holds several splits ({', '.join(known)}), which must not be mixed; choose one, "
            f"for instance data.split={wanted}"
        )
    return locations
