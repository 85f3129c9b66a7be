"""A checkpoint is either complete or not there, whatever happens while it is written."""

import errno
import json
import os
import shutil
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from mmalign.training import checkpoint as module
from mmalign.training.checkpoint import CheckpointError, CheckpointStore


def store(root: Path, keep: int = 2) -> tuple[CheckpointStore, list[str]]:
    said: list[str] = []
    return CheckpointStore(root, keep=keep, say=said.append), said


def save(target: CheckpointStore, step: int, value: float = 1.0, average: bool = False) -> Path:
    weights = {"w": torch.full((3,), value)}
    return target.save(
        step,
        weights=weights,
        average=weights if average else None,
        training={"optimizer": {"m": torch.full((3,), -value)}, "count": 2},
        state={"seconds": 1.5},
    )


def test_what_is_saved_is_what_is_loaded(tmp_path) -> None:
    target, said = store(tmp_path)
    folder = save(target, 50, value=2.5, average=True)
    assert folder == tmp_path / "step_000050"
    newest = target.newest()
    assert newest is not None
    assert newest.step == 50
    assert newest.state["seconds"] == 1.5
    assert torch.equal(newest.weights()["w"], torch.full((3,), 2.5))
    assert torch.equal(newest.average()["w"], torch.full((3,), 2.5))
    assert torch.equal(newest.training()["optimizer"]["m"], torch.full((3,), -2.5))
    assert said == []


def test_nothing_in_a_checkpoint_is_executed(tmp_path) -> None:
    target, _ = store(tmp_path)
    save(target, 1)

    class Evil:
        def __reduce__(self):
            return os.system, ("exit 1",)

    torch.save(Evil(), tmp_path / "step_000001" / "training.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        module.Checkpoint(tmp_path / "step_000001", 1, {}).training()


def test_the_newest_and_the_best_are_kept(tmp_path) -> None:
    target, _ = store(tmp_path, keep=2)
    for step in (10, 20, 30, 40):
        save(target, step)
        target.prune(best=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000010", "step_000030", "step_000040"]


@pytest.mark.parametrize("where", ["save_file", "_sync"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("failed writing")])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch, where, error) -> None:
    target, _ = store(tmp_path)
    save(target, 10, value=1.0)

    def fail(*arguments):
        raise error

    monkeypatch.setattr(module, where, fail)
    with pytest.raises(CheckpointError, match=r"step_000020: .*step_000010 is intact: make room") as failure:
        save(target, 20)
    assert str(error) in str(failure.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000010"]
    assert target.newest().step == 10


def test_a_really_full_disk(tmp_path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    # The zip writer of torch and the Rust writer of safetensors report a full disk in their own ways.
    with pytest.raises((OSError, RuntimeError, module.SafetensorError)):
        torch.save({"a": torch.zeros(100_000)}, full)
    assert issubclass(module.SafetensorError, Exception)


def _killed_before_rename(root: Path) -> None:
    target = CheckpointStore(root, keep=2, say=print)
    Path.rename = lambda *_: os.kill(os.getpid(), 9)
    save(target, 20, value=2.0)


def test_a_kill_between_write_and_rename_leaves_the_previous_checkpoint(tmp_path) -> None:
    target, said = store(tmp_path)
    save(target, 10, value=1.0)
    process = get_context("fork").Process(target=_killed_before_rename, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -9
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"step_000010", ".writing-step_000020"}
    assert target.newest().step == 10
    save(target, 20, value=3.0)
    assert target.newest().weights()["w"][0] == 3.0
    assert {path.name for path in tmp_path.iterdir()} == {"step_000010", "step_000020"}
    assert "left by an interrupted run" in said[0]


@pytest.mark.parametrize("damage", ["no state", "half a state", "no weights", "half the weights", "empty"])
def test_half_a_checkpoint_is_left_out_with_a_note(tmp_path, damage) -> None:
    target, said = store(tmp_path)
    save(target, 10)
    folder = save(target, 20)
    state, weights = folder / "state.json", folder / "weights.safetensors"
    if damage == "no state":
        state.unlink()
    elif damage == "half a state":
        state.write_text(state.read_text()[:20])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "half the weights":
        weights.write_bytes(weights.read_bytes()[:-4])
    else:
        shutil.rmtree(folder)
        folder.mkdir()
    assert target.newest().step == 10
    assert target.at(20) is None
    assert len(said) == 1
    assert "step_000020 is left out: it is incomplete" in said[0]
    save(target, 20, value=7.0)  # and it can be written again
    assert target.newest().weights()["w"][0] == 7.0


def test_state_lists_every_file(tmp_path) -> None:
    target, _ = store(tmp_path)
    folder = save(target, 5, average=True)
    listed = json.loads((folder / "state.json").read_text())["files"]
    assert listed == {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "state.json"}
    assert len(listed) == 3


def test_files_and_folders_reach_the_disk_before_the_rename(tmp_path, monkeypatch) -> None:
    events: list[str] = []
    sync, rename = module._sync, Path.rename
    monkeypatch.setattr(module, "_sync", lambda *paths: (events.extend(path.name for path in paths), sync(*paths)))
    monkeypatch.setattr(Path, "rename", lambda path, to: (events.append("rename"), rename(path, to))[1])
    target, _ = store(tmp_path)
    save(target, 5)
    before = events[: events.index("rename")]
    assert {"weights.safetensors", "training.pt", "state.json", ".writing-step_000005"} <= set(before)
    assert events[events.index("rename") + 1] == tmp_path.name
