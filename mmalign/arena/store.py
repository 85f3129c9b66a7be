"""The vote store: battles and votes in one SQLite file that only grows, shared by any number of processes."""

import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmalign.arena import checks, keys, schema
from mmalign.arena.rows import CHUNK, battle_of, battle_values, side_values, vote_of
from mmalign.arena.types import Ballot, Battle, Receipt, Vote

LIFETIME_SECONDS = 3600.0


@dataclass(frozen=True)
class Forgotten:
    """What :meth:`VoteStore.forget` removed, and the exported files that still hold votes of that voter."""

    votes: int
    exports: tuple[str, ...]


class VoteStore:
    """Battles and votes at ``path``: append-only, transactional, on disk before a call returns.

    SQLite with a write-ahead log and ``synchronous=FULL``. Several threads and processes may use one file. Voters are
    kept as pseudonyms under ``key`` (32 bytes; default: the file ``NAME.key`` beside the store, made with mode 0600).
    ``lifetime_seconds`` is how long a battle can be voted on. ``create=False`` refuses a file that is not there.
    Raises ValueError, with the reason, for a file of something else, of a newer version, or made under another key.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        key: bytes | None = None,
        lifetime_seconds: float = LIFETIME_SECONDS,
        create: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        checks.check_number("lifetime_seconds", lifetime_seconds, low=1)
        self.path = Path(path).expanduser().absolute()
        self.lifetime_seconds = lifetime_seconds
        self._clock = clock
        self._lock = threading.RLock()
        self._connection, self._process = schema.connect(self.path, create=create), os.getpid()
        try:
            self._key = self._read_key(key)
        except ValueError:
            self._connection.close()
            raise

    def open_battle(self, battle: Battle, *, voter: str | None = None) -> str:
        """Keep ``battle`` and give its id, which cannot be guessed; with ``voter`` only that voter may vote on it.

        It is on disk when this returns, so a restart before the vote loses nothing. Raises ValueError for a battle that
        was opened already, or one that repeats a battle the store does not hold or that showed something else.
        """
        if battle.id is not None:
            raise ValueError(f"this battle is open already as {battle.id}; make a new Battle")
        now, identity = self._clock(), secrets.token_urlsafe(18)
        kept = replace(battle, id=identity, opened_at=now, expires_at=now + self.lifetime_seconds)
        issued_to = None if voter is None else self.pseudonym(voter)
        with self._writing() as connection:
            if battle.catch_of is not None:
                _check_repeat(battle, self._find(battle.catch_of))
            connection.execute(f"INSERT INTO battles VALUES ({', '.join('?' * 11)})", battle_values(kept))
            connection.executemany("INSERT INTO sides VALUES (?, ?, ?, ?, ?)", side_values(kept))
            if issued_to is not None:
                connection.execute("INSERT INTO issued VALUES (?, ?)", (identity, issued_to))
        return identity

    def vote(self, battle_id: str, voter: str, ballot: Ballot) -> Receipt:
        """Keep ``ballot`` and give its receipt once it is on disk.

        The same decision of the same voter on the same battle gives the first receipt again, also after the battle has
        expired. Raises ValueError for an unknown, forged or expired battle id, a battle issued to another voter, a
        ballot that does not fit the battle, or another decision than the one that is kept.
        """
        if not isinstance(ballot, Ballot):
            raise ValueError(f"ballot={checks.shown(ballot)} must be a Ballot")
        name = self.pseudonym(voter)
        with self._writing() as connection:
            battle = self._find(battle_id)
            earlier = connection.execute(
                "SELECT receipt, at, ballot FROM votes WHERE battle = ? AND voter = ?", (battle_id, name)
            ).fetchone()
            if earlier is not None:
                receipt, at, kept = earlier
                if Ballot.from_json(json.loads(kept)).decision() != ballot.decision():
                    raise ValueError("you have voted on this battle already, and a vote cannot be changed")
                return Receipt(receipt, battle_id, name, at)
            self._check_open(battle, name)
            ballot.check_against(battle)
            done = Receipt(secrets.token_urlsafe(18), battle_id, name, self._clock())
            connection.execute(
                "INSERT INTO votes (receipt, battle, voter, at, ballot) VALUES (?, ?, ?, ?, ?)",
                (done.id, battle_id, name, done.at, json.dumps(ballot.as_json(), ensure_ascii=False)),
            )
        return done

    def battle(self, battle_id: str) -> Battle:
        """The battle of that id, as it was opened. Raises ValueError where there is none."""
        with self._lock:
            self._check_process()
            return self._find(battle_id)

    def battles(self) -> Iterator[Battle]:
        """Every battle in the order of opening, voted on or not, as of now."""
        with self._reading() as connection:
            cursor = connection.execute("SELECT * FROM battles ORDER BY opened_at, rowid")
            while rows := cursor.fetchmany(CHUNK):
                for row in rows:
                    yield battle_of(row, _sides(connection, row[0]))

    def votes(self, voter: str | None = None) -> Iterator[Vote]:
        """Every vote, or those of ``voter``, in the order of arrival, with its battle, as of now."""
        condition, values = ("", ()) if voter is None else ("WHERE v.voter = ? ", (self.pseudonym(voter),))
        with self._reading() as connection:
            marked = {receipt for (receipt,) in connection.execute("SELECT DISTINCT receipt FROM exported")}
            cursor = connection.execute(
                "SELECT v.receipt, v.voter, v.at, v.ballot, b.* FROM votes v JOIN battles b ON b.id = v.battle "
                f"{condition}ORDER BY v.number",
                values,
            )
            while rows := cursor.fetchmany(CHUNK):
                for receipt, name, at, ballot, *row in rows:
                    battle = battle_of(row, _sides(connection, row[0]))
                    yield vote_of(Receipt(receipt, row[0], name, at), battle, ballot, receipt in marked)

    def counts(self) -> dict[str, int]:
        """Number of battles, votes, voters and exported votes."""
        asked = {
            "battles": "SELECT count(*) FROM battles",
            "votes": "SELECT count(*) FROM votes",
            "voters": "SELECT count(DISTINCT voter) FROM votes",
            "exported": "SELECT count(DISTINCT receipt) FROM exported",
        }
        with self._reading() as connection:
            return {name: connection.execute(query).fetchone()[0] for name, query in asked.items()}

    def forget(self, voter: str, *, is_pseudonym: bool = False) -> Forgotten:
        """Delete every trace of ``voter``: votes, marks of their export, and that battles were issued to them.

        Battles stay, for they name nobody. The bytes are overwritten and the log is cut. Exported files are not touched
        and are named in the result. A voter of whom nothing is kept gives 0 votes.
        """
        name = voter if is_pseudonym else self.pseudonym(voter)
        checks.check_text("voter", name, longest=checks.LONGEST_NAME)
        with self._writing() as connection:
            connection.execute("INSERT INTO forgetting VALUES (?)", (name,))
            files = connection.execute(
                "SELECT DISTINCT file FROM exports JOIN exported ON export = id WHERE voter = ? ORDER BY file", (name,)
            ).fetchall()
            for table in ("exported", "issued"):
                connection.execute(f"DELETE FROM {table} WHERE voter = ?", (name,))
            votes = connection.execute("DELETE FROM votes WHERE voter = ?", (name,)).rowcount
            connection.execute("DELETE FROM forgetting")
        with self._lock:
            (busy, *_) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise RuntimeError("the votes are deleted, but a long reader keeps the old log on disk; forget once more")
        return Forgotten(votes, tuple(file for (file,) in files))

    def mark_exported(
        self,
        receipts: Sequence[tuple[str, str]],
        *,
        form: str,
        file: str | Path,
        settings: Mapping[str, Any] | None = None,
    ) -> str:
        """Note that the votes (receipt, voter) went into ``file``, all or none; gives the export's id."""
        identity = secrets.token_urlsafe(9)
        with self._writing() as connection:
            values = (identity, self._clock(), form, str(file), json.dumps(settings or {}))
            connection.execute("INSERT INTO exports VALUES (?, ?, ?, ?, ?)", values)
            for receipt, voter in receipts:
                known = connection.execute("SELECT voter FROM votes WHERE receipt = ?", (receipt,)).fetchone()
                if known != (voter,):
                    raise ValueError(f"vote {receipt} is gone (its voter was forgotten?); export again")
            connection.executemany(
                "INSERT INTO exported VALUES (?, ?, ?)", [(receipt, identity, voter) for receipt, voter in receipts]
            )
        return identity

    def export_settings(self) -> list[dict[str, Any]]:
        """The settings of every export, the oldest first."""
        with self._reading() as connection:
            rows = connection.execute("SELECT settings FROM exports ORDER BY at, rowid").fetchall()
        return [json.loads(text) for (text,) in rows]

    def pseudonym(self, voter: str) -> str:
        """The text under which ``voter`` is kept."""
        return keys.pseudonym(self._key, voter)

    def close(self) -> None:
        """Let go of the file; what was acknowledged is on disk already."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> "VoteStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, battle_id: str) -> Battle:
        row = None
        if isinstance(battle_id, str):
            checks.check_text("battle id", battle_id, longest=checks.LONGEST_NAME, empty=True)
            row = self._connection.execute("SELECT * FROM battles WHERE id = ?", (battle_id,)).fetchone()
        if row is None:
            raise ValueError(f"battle id {checks.shown(battle_id)} was not issued by this store; open a battle first")
        return battle_of(row, _sides(self._connection, battle_id))

    def _check_open(self, battle: Battle, name: str) -> None:
        issued = self._connection.execute("SELECT voter FROM issued WHERE battle = ?", (battle.id,)).fetchone()
        if issued is not None and issued[0] != name:
            raise ValueError("this battle was issued to another voter; ask for one of your own")
        late = self._clock() - (battle.expires_at or 0)
        if late > 0:
            raise ValueError(f"this battle expired {late:.0f} seconds ago; ask for a new one")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that is on disk at the end, or nothing of it."""
        with self._lock:
            self._check_process()
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own that sees one moment of the store, however long the reader takes."""
        self._check_process()
        connection = schema.connect(self.path, create=False)
        try:
            connection.execute("PRAGMA query_only=ON")
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.close()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("a vote store does not survive a fork; open it again in the new process")

    def _read_key(self, given: bytes | None) -> bytes:
        """The key, checked against the mark in the store; the first opening leaves that mark."""
        if given is not None and len(given) != keys.KEY_BYTES:
            raise ValueError(f"key has {len(given)} bytes; a key has {keys.KEY_BYTES}")
        asked = "SELECT value FROM meta WHERE name = 'key_mark'"
        marked = self._connection.execute(asked).fetchone()
        key = given if given is not None else keys.read_key(self.path, create=marked is None)
        with self._writing() as connection:
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('key_mark', ?)", (keys.key_mark(key),))
            (mark,) = connection.execute(asked).fetchone()
        if mark != keys.key_mark(key):
            raise ValueError(f"{self.path} was made under another key; its voters would get new pseudonyms")
        return key


def _sides(connection: sqlite3.Connection, battle_id: str) -> list[str]:
    rows = connection.execute("SELECT provenance FROM sides WHERE battle = ? ORDER BY place", (battle_id,))
    return [text for (text,) in rows]


def _check_repeat(battle: Battle, earlier: Battle) -> None:
    now, then = ([side.shows for side in one.shown] for one in (battle, earlier))
    if sorted(now) != sorted(then):
        raise ValueError(f"catch_of={battle.catch_of}: that battle showed something else")
    if now == then:
        raise ValueError(f"catch_of={battle.catch_of}: a repeat shows the sides in another order")
