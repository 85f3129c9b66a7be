"""Stores, claims and files of caches: nothing is lost, doubled, half-written or taken for another."""

import os
import re
import resource
import shutil
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.utils.data import DataLoader

from mmalign import caches
from mmalign.caches import (
    CacheMismatch,
    Claims,
    FileHashes,
    Store,
    Writer,
    check_space,
    key_of,
    why_not_found,
    written_whole,
)
from mmalign.caches.store import SUFFIX

SETTINGS = {"vae": {"weights": "a", "config": {"scaling": 0.5}}, "dtype": "float32"}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it wrote; only a power cut would, and that is not tested here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def store(root: Path, **changed: object) -> Store:
    return Store(root, "latents", SETTINGS | changed, {})


def entry(number: int) -> dict[str, torch.Tensor]:
    """Entries of three shapes and dtypes."""
    generator = torch.Generator().manual_seed(number)
    mean = torch.randn(4, 8, 8 + number % 2, generator=generator)
    return {"mean": mean, "std": mean.exp()} if number % 3 else {"text": mean.bfloat16()}


def written(root: Path, numbers: range, *, shards: int = 1, **changed: object) -> Store:
    writer = Writer(store(root, **changed))
    for index, number in enumerate(numbers):
        writer.add(key_of(str(number)), entry(number))
        if (index + 1) % -(-len(numbers) // shards) == 0:
            writer.flush()
    writer.flush()
    return writer.store


def assert_holds(store: Store, numbers: range) -> None:
    assert store.missing(key_of(str(number)) for number in numbers) == []
    for number in numbers:
        found = store.read(key_of(str(number)))
        assert found.keys() == entry(number).keys()
        assert all(torch.equal(found[name], value) for name, value in entry(number).items())
        assert all(found[name].dtype == value.dtype for name, value in entry(number).items())


def keys_on_disk(folder: Path) -> list[str]:
    keys = []
    for path in folder.glob(f"*{SUFFIX}"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name.endswith(".keys"):
                    keys += [bytes(key.tolist()).decode() for key in file.get_tensor(name)]
    return keys


def test_entries_come_back_bit_for_bit(tmp_path: Path) -> None:
    written(tmp_path, range(40), shards=3)
    again = store(tmp_path)
    assert len(again) == 40
    assert len(list(again.folder.glob(f"*{SUFFIX}"))) == 3
    assert_holds(again, range(40))
    assert again.missing([key_of("7"), key_of("x"), key_of("x"), key_of("41")]) == [key_of("x"), key_of("41")]
    assert key_of("x") not in again
    with pytest.raises(KeyError):
        again.read(key_of("x"))


def test_what_is_read_is_a_copy_of_its_own_size(tmp_path: Path) -> None:
    found = written(tmp_path, range(1, 30)).read(key_of("1"))
    assert found["mean"].untyped_storage().nbytes() == found["mean"].nbytes
    found["mean"].zero_()
    assert_holds(store(tmp_path), range(1, 30))


def test_keys_tell_parts_apart() -> None:
    assert len({key_of("ab", "c"), key_of("a", "bc"), key_of("abc"), key_of("ab", "c", "")}) == 4
    assert key_of("ab") == key_of(b"ab")


def test_two_writers_that_do_not_know_of_each_other_store_no_key_twice(tmp_path: Path) -> None:
    first, second = Writer(store(tmp_path)), Writer(store(tmp_path))
    for number in range(10):
        first.add(key_of(str(number)), entry(number))
        second.add(key_of(str(number + 5)), entry(number + 5))
    first.flush()
    second.flush()
    assert (first.written, second.written) == (10, 5)
    keys = keys_on_disk(second.store.folder)
    assert sorted(keys) == sorted(key_of(str(number)) for number in range(15))
    first.store.refresh()
    assert_holds(first.store, range(15))


def test_a_shard_is_due_by_size_or_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(store(tmp_path))
    writer.add("a" * 32, {"mean": torch.zeros(1024)[:256]})
    assert not writer.due
    monkeypatch.setattr(caches.writer, "SHARD_BYTES", 256 * 4)
    assert writer.due
    writer.flush()
    assert not writer.due
    assert next(writer.store.folder.glob(f"*{SUFFIX}")).stat().st_size < 2048  # the view was stored, not what it views
    monkeypatch.setattr(caches.writer, "SECONDS_BETWEEN_SHARDS", 0.0)
    assert writer.due


def test_other_settings_are_another_folder_and_the_reason_is_told(tmp_path: Path) -> None:
    written(tmp_path, range(3))
    wanted = {"vae": {"weights": "b", "config": {"scaling": 0.5}}, "dtype": "float16"}
    assert len(Store(tmp_path, "latents", wanted, {})) == 0
    reason = why_not_found(tmp_path, "latents", wanted)
    assert reason is not None
    assert "vae.weights (a there, b now); dtype (float32 there, float16 now)" in reason
    assert "scaling" not in reason
    assert why_not_found(tmp_path, "latents", SETTINGS) is None
    assert why_not_found(tmp_path, "text", wanted) is None
    assert why_not_found(tmp_path / "nothing", "latents", wanted) is None


def test_opening_writes_nothing(tmp_path: Path) -> None:
    assert len(store(tmp_path / "cache")) == 0
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_another_process_is_just_making_is_an_empty_one(tmp_path: Path) -> None:
    """Between making the folder and its manifest; and a folder whose manifest was lost still holds what it holds."""
    folder = written(tmp_path / "elsewhere", range(3)).folder
    (tmp_path / folder.name).mkdir()
    assert len(store(tmp_path)) == 0
    written(tmp_path, range(3))
    (tmp_path / folder.name / "manifest.json").unlink()
    assert_holds(store(tmp_path), range(3))
    written(tmp_path, range(3, 5))
    assert (tmp_path / folder.name / "manifest.json").is_file()


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, range(3)).folder
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace('"weights": "a"', '"weights": "z"'))
    with pytest.raises(CacheMismatch, match=r"vae\.weights \(z there, a now\)\. To build it again: rm -r"):
        store(tmp_path)
    (folder / "manifest.json").write_text(manifest.replace('"format": 1', '"format": 99'))
    with pytest.raises(CacheMismatch, match="has format 99, this version of mmalign reads format 1"):
        store(tmp_path)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(CacheMismatch, match="unreadable"):
        store(tmp_path)


def test_a_foreign_or_damaged_shard_is_refused(tmp_path: Path) -> None:
    mine, other = written(tmp_path, range(3)), written(tmp_path, range(3, 6), dtype="float16")
    foreign = next(other.folder.glob(f"*{SUFFIX}"))
    copied = Path(shutil.copy(foreign, mine.folder))
    with pytest.raises(CacheMismatch, match=f"{copied} belongs to another cache folder"):
        store(tmp_path)
    copied.unlink()
    shard = next(mine.folder.glob(f"*{SUFFIX}"))
    os.truncate(shard, shard.stat().st_size - 8)
    with pytest.raises(CacheMismatch, match=f"{shard} is damaged"):
        store(tmp_path)
    shard.unlink()
    assert len(store(tmp_path)) == 0


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail() -> None:
        with written_whole(tmp_path / "file") as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with written_whole(tmp_path / "file") as partial:
        partial.write_text("whole")
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_text() == "whole"


def test_what_a_killed_writer_left_is_neither_read_nor_kept(tmp_path: Path) -> None:
    folder = written(tmp_path, range(3)).folder
    left = folder / f"abc{SUFFIX}.0123.partial"
    left.write_bytes(b"half")
    assert len(store(tmp_path)) == 3
    written(tmp_path, range(3, 5))
    assert not left.exists()
    assert_holds(store(tmp_path), range(5))


def test_too_small_a_disk_is_told_beforehand(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_space(tmp_path, free // 2, "latents")
    with pytest.raises(ValueError, match=r"latents need up to .*data\.cache_folder.*cache_dtype=float16"):
        check_space(tmp_path, 2 * free, "latents")


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files makes the write fail as a full disk does, in the middle of a shard."""
    written(tmp_path, range(5))

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(ValueError, match=r"could not be written to .*What the cache holds is whole"):
            written(tmp_path, range(5, 40))
        with pytest.raises(ValueError, match="could not be written"):
            written(tmp_path, range(5, 40))

    assert in_a_process(fill) == 0
    folder = store(tmp_path).folder
    assert not list(folder.glob("*.partial"))
    assert len(store(tmp_path)) == 5
    written(tmp_path, range(5, 40))
    assert_holds(store(tmp_path), range(40))


def test_weights_are_hashed_once(tmp_path: Path) -> None:
    file, hashes = tmp_path / "weights", FileHashes(tmp_path / "files.json")
    file.write_bytes(b"one")
    first, mark = hashes(file), file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(mark.st_atime_ns, mark.st_mtime_ns))
    assert hashes(file) == first  # size and time say that it is the same file
    os.utime(file, ns=(mark.st_atime_ns, mark.st_mtime_ns + 1))
    assert FileHashes(tmp_path / "files.json")(file) != first


# --- several processes ------------------------------------------------------------------------------------------------


def in_a_process(work, *arguments) -> int | None:
    process = get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join(timeout=60)
    return process.exitcode


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    path, context = tmp_path / "claims", get_context("fork")
    holding = context.Event()

    def hold() -> None:
        claims = Claims(path)
        assert claims.take(3)
        holding.set()
        time.sleep(60)

    holder = context.Process(target=hold)
    holder.start()
    assert holding.wait(30)
    with Claims(path) as claims:
        assert claims.take(2)
        assert not claims.take(3)
        holder.kill()
        holder.join(30)
        assert claims.take(3)
        claims.free(3)
        assert claims.take(3)


def test_many_processes_write_one_store(tmp_path: Path) -> None:
    context = get_context("fork")
    processes = [
        context.Process(target=written, args=(tmp_path, range(10 * n, 10 * n + 20)), kwargs={"shards": 5})
        for n in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    found = store(tmp_path)
    keys = keys_on_disk(found.folder)
    assert len(keys) == len(set(keys)) == 50
    assert_holds(found, range(50))


def test_data_workers_read_shards_that_they_inherited(tmp_path: Path) -> None:
    found = written(tmp_path, range(1, 30, 3), shards=2)
    found.read(key_of("1"))  # opened before the workers are forked
    expected = [entry(number)["mean"] for number in range(1, 30, 3)]

    class Entries:
        def __len__(self) -> int:
            return len(expected)

        def __getitem__(self, index: int) -> torch.Tensor:
            return found.read(key_of(str(1 + 3 * index)))["mean"]

    loader = DataLoader(Entries(), batch_size=None, num_workers=2, multiprocessing_context="fork")  # type: ignore[arg-type]
    assert all(torch.equal(read, mean) for read, mean in zip(loader, expected, strict=True))


def test_reading_takes_no_memory(tmp_path: Path) -> None:
    """40 MB in ten shards: what the process itself holds is less than half of that, and no more after more reading."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("needs /proc to tell memory maps from memory")
    writer = Writer(store(tmp_path))
    for number in range(40):
        writer.add(key_of(str(number)), {"mean": torch.full((256, 1024), float(number))})
        if number % 4 == 3:
            writer.flush()

    def read() -> None:
        found, before = store(tmp_path), held_mib()
        for number in range(40):
            assert found.read(key_of(str(number)))["mean"][5, 7] == number
        after = held_mib()
        for number in 3 * list(range(40)):
            assert found.read(key_of(str(number)))["mean"][5, 7] == number
        assert len(found._open) == 10
        assert after - before < 20
        assert held_mib() - after < 2

    assert in_a_process(read) == 0


def held_mib() -> float:
    """Memory of this process that is no file's."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024
