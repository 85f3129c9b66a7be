"""Pseudonyms of voters: HMAC-SHA256 under a key that lies beside the store, readable by its owner alone."""

import hashlib
import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from mmalign.arena import checks

KEY_BYTES = 32
LONGEST_VOTER = 1_000


def pseudonym(key: bytes, voter: str) -> str:
    """``v_`` and 32 hexadecimal digits: the same voter, the same text; without the key nobody can go back."""
    checks.check_text("voter", voter, longest=LONGEST_VOTER)
    return "v_" + hmac.new(key, b"voter:" + voter.encode(), hashlib.sha256).hexdigest()[:32]


def key_mark(key: bytes) -> str:
    """What the store keeps to notice another key; it gives nothing of the key away."""
    return hmac.new(key, b"mmalign.arena", hashlib.sha256).hexdigest()[:16]


def key_file(store: Path) -> Path:
    """Where the key of ``store`` lies."""
    return store.with_name(f"{store.name}.key")


def read_key(store: Path, *, create: bool) -> bytes:
    """The key beside ``store``; made, for its owner's eyes only (mode 0600), where there is none and ``create``."""
    path = key_file(store)
    if create and not path.exists():
        _make(path)
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing: without the key of this store its voters would get new pseudonyms. Put the key back "
            "beside the store, or pass it"
        ) from None
    if len(key) != KEY_BYTES:
        raise ValueError(f"{path} has {len(key)} bytes; a key has {KEY_BYTES}")
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError(f"{path} can be read by others; type chmod 600 {path}")
    return key


def _make(path: Path) -> None:
    """Written whole under another name, then linked: of two processes one wins and both read its key."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        partial.unlink(missing_ok=True)
