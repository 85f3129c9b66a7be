"""Whether a file of weights is the one that was published: its SHA-256, wherever that is known.

Known is, in this order, what ``SHA256SUMS`` beside the file says (as ``sha256sum`` writes it: for weights of your own,
and for files whose hash nobody publishes), what the model's source says, and for a file in the hub's cache the name
under which the hub keeps it, which is its SHA-256. A file of 4 GB takes a few seconds, once per process.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
_BLOB = re.compile(r"[0-9a-f]{64}")
_DIGESTS: dict[tuple[Path, int, int], str] = {}  # of this path, size and time of change


def check_hash(path: Path, published: Mapping[str, str]) -> Path:
    """``path``, once its content has the hash that is known of it. ``published``: file name -> SHA-256.

    ValueError for another content, with what to do, and for a ``SHA256SUMS`` that nobody can read.
    """
    expected, by = _expected(path, published)
    if expected is None:
        return path
    found = _digest(path)
    if found != expected:
        raise ValueError(
            f"{path}: SHA-256 is {found}, {by} is {expected}; download the file again. If it is meant to be another "
            f"one, say so beside it: (cd {path.parent} && sha256sum {path.name} >> {SUMS})"
        )
    return path


def _expected(path: Path, published: Mapping[str, str]) -> tuple[str | None, str]:
    stated = _stated(path.parent / SUMS)
    if path.name in stated:
        return stated[path.name], f"stated in {SUMS}"
    if path.name in published:
        return published[path.name], "published"
    kept_as = path.resolve()
    if kept_as.parent.name == "blobs" and _BLOB.fullmatch(kept_as.name):
        return kept_as.name, "told by the hub"
    return None, ""


def _stated(sums: Path) -> dict[str, str]:
    """File name -> SHA-256; the last line of a name counts."""
    if not sums.is_file():
        return {}
    stated = {}
    for number, line in enumerate(sums.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            raise ValueError(
                f"{sums}, line {number}: {line!r} is not a SHA-256 and a file name, as sha256sum writes them"
            )
        stated[match[2]] = match[1].lower()
    return stated


def _digest(path: Path) -> str:
    status = path.stat()
    content = (path, status.st_size, status.st_mtime_ns)
    if content not in _DIGESTS:
        with path.open("rb") as stream:
            _DIGESTS[content] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _DIGESTS[content]
