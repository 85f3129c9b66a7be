"""Which weights a name stands for: a digest of their files, or the commit of a repository on the hub."""

import hashlib
from functools import cache
from pathlib import Path

INDEXES = ("model_index.json", "config.json")


@cache
def digest_of(location: str) -> str | None:
    """SHA-256 over the digests of a folder's ``.safetensors`` files, or of the file ``location``, in order of names.

    Of a hub id: the commit that lies in the cache of this machine; None where there is none yet. Nothing is fetched.
    """
    path = Path(location)
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors")) if path.is_dir() else []
    if not files:
        return None if path.is_dir() else _commit(location)
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _commit(repository: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    for index in INDEXES:
        found = try_to_load_from_cache(repository, index)
        if isinstance(found, str):
            return Path(found).parent.name
    return None
