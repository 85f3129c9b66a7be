"""The SQLite file behind a vote store: its tables, the triggers that keep it append-only, and opening it.

Nothing is ever updated, and nothing is deleted but what belongs to a voter who is named in ``forgetting`` within the
same transaction. ``application_id`` tells a store from any other SQLite file, ``user_version`` is the schema's version.
"""

import os
import sqlite3
import time
from pathlib import Path

APPLICATION_ID = 0x6D6D_4152  # "mmAR"
VERSION = 1
BUSY_SECONDS = 60.0
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE battles (
  id TEXT PRIMARY KEY, opened_at REAL NOT NULL, expires_at REAL NOT NULL, prompt TEXT NOT NULL, form TEXT NOT NULL,
  seed TEXT NOT NULL, shown_order TEXT NOT NULL, policy TEXT NOT NULL, propensity REAL, catch TEXT,
  catch_of TEXT REFERENCES battles(id)
) STRICT;
CREATE TABLE sides (
  battle TEXT NOT NULL REFERENCES battles(id), place INTEGER NOT NULL, player TEXT NOT NULL,
  image_sha256 TEXT NOT NULL, provenance TEXT NOT NULL, PRIMARY KEY (battle, place)
) STRICT, WITHOUT ROWID;
CREATE TABLE issued (battle TEXT PRIMARY KEY REFERENCES battles(id), voter TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE votes (
  number INTEGER PRIMARY KEY AUTOINCREMENT, receipt TEXT NOT NULL UNIQUE, battle TEXT NOT NULL REFERENCES battles(id),
  voter TEXT NOT NULL, at REAL NOT NULL, ballot TEXT NOT NULL, UNIQUE (battle, voter)
) STRICT;
CREATE TABLE exports (id TEXT PRIMARY KEY, at REAL NOT NULL, form TEXT NOT NULL, file TEXT NOT NULL,
  settings TEXT NOT NULL) STRICT;
CREATE TABLE exported (
  receipt TEXT NOT NULL, export TEXT NOT NULL REFERENCES exports(id), voter TEXT NOT NULL,
  PRIMARY KEY (receipt, export)
) STRICT, WITHOUT ROWID;
CREATE TABLE forgetting (voter TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE INDEX votes_by_voter ON votes (voter);
CREATE INDEX issued_by_voter ON issued (voter);
CREATE INDEX exported_by_voter ON exported (voter);
"""
_APPEND_ONLY = ("meta", "battles", "sides", "issued", "votes", "exports", "exported")
_OF_A_VOTER = ("issued", "votes", "exported")


def connect(path: Path, *, create: bool) -> sqlite3.Connection:
    """A connection to the store at ``path``, checked to be one of this version; made where there is none (``create``).

    Raises ValueError, with the reason, for a missing file, no SQLite file, another program's or one of a newer version.
    """
    if not path.exists():
        if not create:
            raise ValueError(f"{path} does not exist")
        path.parent.mkdir(parents=True, exist_ok=True)
        # For its owner's eyes only; SQLite gives the files beside it the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, path, create)
    except sqlite3.DatabaseError as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise ValueError(f"{path} is not a vote store: {error}") from error
    except ValueError:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, create: bool) -> None:
    if _pragma(connection, "application_id") != APPLICATION_ID or not _pragma(connection, "user_version"):
        if not create and not _pragma(connection, "schema_version"):
            raise ValueError(f"{path} is empty, not a vote store")
        _create(connection, path)
    version = _pragma(connection, "user_version")
    if version != VERSION:
        newer = "a newer mmalign wrote it; update mmalign" if version > VERSION else "no such version was released"
        raise ValueError(f"{path} is a vote store of version {version}, and this mmalign reads {VERSION}: {newer}")
    if _wal(connection) != "wal":
        raise ValueError(f"{path}: this file system cannot hold a write-ahead log; keep the store on a local disk")
    # FULL: a commit returns when the log is on disk. secure_delete: what is forgotten is overwritten.
    # recursive_triggers: a row cannot be replaced past the trigger that forbids its deletion.
    for setting in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON", "recursive_triggers=ON"):
        connection.execute(f"PRAGMA {setting}")


def _create(connection: sqlite3.Connection, path: Path) -> None:
    """The tables, in one transaction, in a file that holds nothing yet; another process may have been faster."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        owner, objects = _pragma(connection, "application_id"), connection.execute("SELECT name FROM sqlite_master")
        names = [name for (name,) in objects.fetchall()]
        if owner == APPLICATION_ID and names:
            connection.execute("COMMIT")
            return
        if names or owner not in (0, APPLICATION_ID):
            raise ValueError(
                f"{path} is an SQLite file of something else ({', '.join(names[:5])}); nothing was changed"
            )
        for statement in [*_TABLES.split(";\n"), *_triggers()]:
            if statement.strip():
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={VERSION}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _triggers() -> list[str]:
    statements = []
    for table in _APPEND_ONLY:
        allowed = " WHEN OLD.voter NOT IN (SELECT voter FROM forgetting)" if table in _OF_A_VOTER else ""
        for verb, condition in (("UPDATE", ""), ("DELETE", allowed)):
            statements.append(
                f"CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table}{condition} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
    return statements


def _wal(connection: sqlite3.Connection) -> str:
    """Switch to the write-ahead log; the switch itself does not wait for another process, so this does."""
    waited_until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode=WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > waited_until:
                raise
            time.sleep(0.02)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
