"""Server processes that are killed in the middle of their work lose nothing acknowledged and duplicate nothing."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from mmalign.arena import Ballot, VoteStore

ROOT = Path(__file__).parents[2]
SERVER = """
import os, sys
from mmalign.arena import Ballot, VoteStore
from tests.arena.making_votes import battle
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = VoteStore(path)
for number in range(count):
    identity = store.open_battle(battle())
    os.write(1, f"opened {identity} {name}{number}\\n".encode())
    receipt = store.vote(identity, f"{name}{number}", Ballot(better="left"))
    # Only now may the voter be told; one write, so that a line is whole or absent.
    os.write(1, f"voted {identity} {name}{number} {receipt.id}\\n".encode())
"""


def serve(path: Path, name: str, count: int, out: Path) -> subprocess.Popen:
    with out.open("wb") as file:
        return subprocess.Popen([sys.executable, "-c", SERVER, path, name, str(count)], stdout=file, cwd=ROOT)


def told(out: Path) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """(battle -> voter, battle -> (voter, receipt)) as the server acknowledged them."""
    opened, voted = {}, {}
    for line in out.read_text().splitlines():
        what, identity, voter, *receipt = line.split()
        if what == "opened":
            opened[identity] = voter
        else:
            voted[identity] = (voter, receipt[0])
    return opened, voted


def test_kill_9_under_load_with_two_servers(tmp_path: Path) -> None:
    path = tmp_path / "votes.db"
    names = ("one", "two")
    servers = [serve(path, name, 10**6, tmp_path / name) for name in names]
    deadline = time.monotonic() + 60
    # Both create the same store at once; killed once each has acknowledged some votes.
    while any((tmp_path / name).read_bytes().count(b"voted") < 12 for name in names):
        assert all(server.poll() is None for server in servers)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for server in servers:
        os.kill(server.pid, signal.SIGKILL)
        server.wait()

    with VoteStore(path) as store:
        kept = {vote.receipt.battle_id: (vote.voter, vote.receipt.id) for vote in store.votes()}
        battles = {battle.id for battle in store.battles()}
        total = store.counts()["votes"]
        assert total == len(kept), "no battle of one voter has two votes"
        acknowledged = 0
        for name in names:
            opened, voted = told(tmp_path / name)
            assert set(opened) <= battles
            acknowledged += len(voted)
            for identity, (voter, receipt) in voted.items():
                assert kept[identity] == (store.pseudonym(voter), receipt)
            # The browser did not hear of the last one and clicks again: the same receipt, or a first one.
            for identity in set(opened) - set(voted):
                again = store.vote(identity, opened[identity], Ballot(better="left"))
                assert kept.get(identity, (again.voter, again.id)) == (again.voter, again.id)
        assert acknowledged >= 24
        # At most the one vote per server that was on disk before its acknowledgement went out.
        assert total - acknowledged <= 2
        assert store.counts()["votes"] <= acknowledged + 2
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_two_servers_finish_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "votes.db"
    servers = [serve(path, name, 25, tmp_path / name) for name in ("one", "two")]
    assert [server.wait(60) for server in servers] == [0, 0]
    with VoteStore(path) as store:
        assert store.counts() == {"battles": 50, "votes": 50, "voters": 50, "exported": 0}
