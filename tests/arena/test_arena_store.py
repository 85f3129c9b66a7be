"""The store: acknowledged means kept, once, whoever else is writing; and nothing can be changed."""

import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from mmalign.arena import Ballot, Battle, VoteStore
from mmalign.arena.schema import APPLICATION_ID
from tests.arena.making_votes import battle, side

LEFT, RIGHT = Ballot(better="left"), Ballot(better="right")


@pytest.fixture
def store(tmp_path: Path):
    with VoteStore(tmp_path / "votes.db") as opened:
        yield opened


def test_a_vote_comes_back_whole(store: VoteStore) -> None:
    fight = battle(seed=11, policy="adaptive", propensity=0.25)
    identity = store.open_battle(fight)
    ballot = Ballot(better="tie", left_ok=True, right_ok=False, reasons="Ünïcode ✓", tags=("style",), seconds=3.25)
    receipt = store.vote(identity, "ann", ballot)
    (vote,) = store.votes()
    assert (vote.receipt, vote.ballot, vote.exported) == (receipt, ballot, False)
    assert (vote.battle.sides, vote.battle.order, vote.battle.seed) == (fight.sides, fight.order, 11)
    assert (vote.battle.policy, vote.battle.propensity, vote.battle.id) == ("adaptive", 0.25, identity)
    assert vote.battle == store.battle(identity) == next(store.battles())
    assert len(identity) == 24


def test_a_double_click_is_one_vote(store: VoteStore) -> None:
    identity = store.open_battle(battle())
    first = store.vote(identity, "ann", Ballot(better="left", seconds=1.0))
    assert store.vote(identity, "ann", Ballot(better="left", seconds=1.2, view="slider")) == first
    assert store.counts() == {"battles": 1, "votes": 1, "voters": 1, "exported": 0}
    (vote,) = store.votes()
    assert vote.ballot.seconds == 1.0


def test_another_vote_on_the_same_battle_is_refused(store: VoteStore) -> None:
    identity = store.open_battle(battle())
    store.vote(identity, "ann", LEFT)
    with pytest.raises(ValueError, match="cannot be changed"):
        store.vote(identity, "ann", RIGHT)
    store.vote(identity, "bob", RIGHT)
    assert [vote.ballot.better for vote in store.votes()] == ["left", "right"]


def test_expiry_and_replay_after_it(tmp_path: Path) -> None:
    now = [1000.0]
    store = VoteStore(tmp_path / "votes.db", lifetime_seconds=60, clock=lambda: now[0])
    identity = store.open_battle(battle())
    receipt = store.vote(identity, "ann", LEFT)
    now[0] = 1061.0
    with pytest.raises(ValueError, match="expired 1 seconds ago"):
        store.vote(identity, "bob", LEFT)
    assert store.vote(identity, "ann", LEFT) == receipt
    assert receipt.at == 1000.0


@pytest.mark.parametrize("identity", ["forged", "", "x" * 24, None, 7])
def test_a_battle_id_that_was_not_issued(store: VoteStore, identity) -> None:
    store.open_battle(battle())
    with pytest.raises(ValueError, match="was not issued"):
        store.vote(identity, "ann", LEFT)
    assert store.counts()["votes"] == 0


@pytest.mark.parametrize(
    ("voter", "ballot", "message"),
    [
        ("", LEFT, "voter is empty"),
        ("v" * 1001, LEFT, "1001 characters"),
        (None, LEFT, "must be a text"),
        ("ann", {"better": "left"}, "must be a Ballot"),
        ("ann", Ballot(ranking=(0, 1, 2)), "asks for better"),
    ],
)
def test_a_wrong_vote_leaves_nothing(store: VoteStore, voter, ballot, message: str) -> None:
    identity = store.open_battle(battle())
    with pytest.raises(ValueError, match=message):
        store.vote(identity, voter, ballot)
    assert store.counts()["votes"] == 0


def test_a_battle_of_one_voter(store: VoteStore) -> None:
    identity = store.open_battle(battle(), voter="ann")
    with pytest.raises(ValueError, match="another voter"):
        store.vote(identity, "bob", LEFT)
    store.vote(identity, "ann", LEFT)


def test_a_battle_is_opened_once(store: VoteStore) -> None:
    identity = store.open_battle(battle())
    with pytest.raises(ValueError, match="open already"):
        store.open_battle(store.battle(identity))


def test_a_repeat_is_checked_against_what_it_repeats(store: VoteStore) -> None:
    fight = battle()
    identity = store.open_battle(fight)
    swapped = fight.order[::-1]
    store.open_battle(Battle(fight.sides, order=swapped, catch="repeat", catch_of=identity))
    with pytest.raises(ValueError, match="another order"):
        store.open_battle(Battle(fight.sides, order=fight.order, catch="repeat", catch_of=identity))
    with pytest.raises(ValueError, match="something else"):
        store.open_battle(Battle((side("x"), side("y")), order=swapped, catch="repeat", catch_of=identity))
    with pytest.raises(ValueError, match="not issued"):
        store.open_battle(Battle(fight.sides, catch="repeat", catch_of="nothing"))
    assert store.counts()["battles"] == 2


def test_a_restart_between_battle_and_vote(tmp_path: Path) -> None:
    with VoteStore(tmp_path / "votes.db") as first:
        identity = first.open_battle(battle(), voter="ann")
        name = first.pseudonym("ann")
    with VoteStore(tmp_path / "votes.db") as second:
        assert second.vote(identity, "ann", LEFT).voter == name


def test_nothing_can_be_updated_or_deleted(store: VoteStore) -> None:
    identity = store.open_battle(battle(), voter="ann")
    receipt = store.vote(identity, "ann", LEFT)
    store.mark_exported([(receipt.id, receipt.voter)], form="canonical", file="x.parquet")
    raw = sqlite3.connect(store.path)
    for table, column in [
        ("votes", "ballot"),
        ("battles", "prompt"),
        ("sides", "player"),
        ("issued", "voter"),
        ("exported", "voter"),
        ("exports", "form"),
        ("meta", "value"),
    ]:
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw.execute(f"UPDATE {table} SET {column} = 'x'")
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw.execute(f"DELETE FROM {table}")
    raw.close()
    assert store.counts() == {"battles": 1, "votes": 1, "voters": 1, "exported": 1}


def test_forgetting_removes_every_trace_of_one_voter(store: VoteStore) -> None:
    identity = store.open_battle(battle())
    for voter in ("ann-the-secret", "bob"):
        receipt = store.vote(identity, voter, Ballot(better="left", reasons=f"words of {voter}"))
        store.mark_exported([(receipt.id, receipt.voter)], form="canonical", file=f"{voter}.parquet")
    store.open_battle(battle(), voter="ann-the-secret")
    name = store.pseudonym("ann-the-secret")
    forgotten = store.forget("ann-the-secret")
    assert (forgotten.votes, forgotten.exports) == (1, ("ann-the-secret.parquet",))
    assert [vote.voter for vote in store.votes()] == [store.pseudonym("bob")]
    for file in store.path.parent.glob("votes.db*"):
        data = file.read_bytes()
        assert name.encode() not in data
        assert b"words of ann" not in data
    assert store.forget("ann-the-secret").votes == 0
    assert store.forget(store.pseudonym("bob"), is_pseudonym=True).votes == 1
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        sqlite3.connect(store.path).execute("DELETE FROM battles")


def test_no_raw_voter_is_ever_stored(store: VoteStore) -> None:
    identity = store.open_battle(battle(), voter="203.0.113.77")
    store.vote(identity, "203.0.113.77", LEFT)
    for file in store.path.parent.iterdir():
        assert b"203.0.113.77" not in file.read_bytes()


def test_the_key_is_the_owners_alone_and_cannot_be_swapped(tmp_path: Path) -> None:
    path = tmp_path / "votes.db"
    VoteStore(path).close()
    key = tmp_path / "votes.db.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    saved = key.read_bytes()
    key.chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        VoteStore(path)
    key.unlink()
    with pytest.raises(ValueError, match="is missing"):
        VoteStore(path)
    assert not key.exists()
    with pytest.raises(ValueError, match="another key"):
        VoteStore(path, key=b"\1" * 32)
    with pytest.raises(ValueError, match="a key has 32"):
        VoteStore(path, key=b"short")
    VoteStore(path, key=saved).close()


def test_a_key_that_is_passed_is_not_written(tmp_path: Path) -> None:
    with VoteStore(tmp_path / "votes.db", key=b"\2" * 32) as store:
        store.vote(store.open_battle(battle()), "ann", LEFT)
    assert not list(tmp_path.glob("*.key"))


def test_files_that_are_no_store_of_this_version(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        VoteStore(tmp_path / "none.db", create=False)
    text, empty, foreign = tmp_path / "text.db", tmp_path / "empty.db", tmp_path / "foreign.db"
    text.write_text("these are no votes " * 100)
    with pytest.raises(ValueError, match="not a vote store"):
        VoteStore(text)
    empty.touch()
    with pytest.raises(ValueError, match="is empty"):
        VoteStore(empty, create=False)
    with sqlite3.connect(foreign) as raw:
        raw.execute("CREATE TABLE songs (id)")
    with pytest.raises(ValueError, match=r"something else \(songs\)"):
        VoteStore(foreign)
    newer = tmp_path / "newer.db"
    VoteStore(newer).close()
    raw = sqlite3.connect(newer)
    assert raw.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    raw.execute("PRAGMA user_version=2")
    raw.close()
    with pytest.raises(ValueError, match="version 2, and this mmalign reads 1: a newer mmalign"):
        VoteStore(newer)


def test_threads_share_a_store(store: VoteStore) -> None:
    shared = store.open_battle(battle())
    receipts: list[str] = []

    def work(number: int) -> None:
        for _ in range(5):
            receipts.append(store.vote(shared, f"voter{number % 3}", LEFT).id)
            store.vote(store.open_battle(battle()), f"voter{number}", RIGHT)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(receipts) == 30
    assert len(set(receipts)) == 3
    assert store.counts()["votes"] == 33


def test_a_commit_waits_for_the_disk(store: VoteStore) -> None:
    """Power loss cannot be tried here; what SQLite promises about it hangs on these two settings (2 is FULL)."""
    asked = {
        name: store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")
    }
    assert asked == {"synchronous": 2, "journal_mode": "wal"}


def test_a_failure_in_the_middle_leaves_nothing(store: VoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmalign.arena import store as module

    def broken(_: Battle) -> list:
        raise OSError("no space left")

    monkeypatch.setattr(module, "side_values", broken)
    with pytest.raises(OSError, match="no space"):
        store.open_battle(battle())
    monkeypatch.undo()
    assert store.counts()["battles"] == 0
    store.vote(store.open_battle(battle()), "ann", LEFT)


def test_reading_sees_one_moment(store: VoteStore) -> None:
    identity = store.open_battle(battle())
    store.vote(identity, "ann", LEFT)
    reading = store.votes()
    next(reading)
    store.vote(identity, "bob", LEFT)
    assert list(reading) == []
    assert len(list(store.votes())) == 2
