"""Weights: where they are looked for, what is refused, and that not one key may be left over."""

import hashlib

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

from reward_models.weights import Source, build, fill, locate, read_state
from tests.rewards.tiny_checkpoints import save_clip, tiny_clip

SOURCE = Source("someone/model", ("config.json", "model.safetensors|pytorch_model.bin"), "MIT")
PAGE = Source("someone/elsewhere", ("head.pt",), "Apache-2.0", page="curl -O somewhere")
CPU = torch.device("cpu")


def put(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_places_in_order(tmp_path, monkeypatch):
    monkeypatch.delenv("MMALIGN_REWARDS", raising=False)
    root = tmp_path / "root"
    put(root / "someone--model", "config.json", "pytorch_model.bin")
    assert [path.name for path in locate(SOURCE, "mine", root)] == ["config.json", "pytorch_model.bin"]
    assert locate(SOURCE, "mine", root / "someone--model") == locate(SOURCE, "mine", root)
    put(root / "someone--model", "model.safetensors")
    monkeypatch.setenv("MMALIGN_REWARDS", str(root))
    assert [path.name for path in locate(SOURCE, "mine")] == ["config.json", "model.safetensors"]
    head = put(tmp_path / "other", "head.pt") / "head.pt"
    assert locate(PAGE, "mine", head) == [head]
    assert locate(PAGE, "mine", head.parent) == [head]


def test_what_is_missing_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("MMALIGN_REWARDS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = []

    def download(repository, name, local_files_only):
        asked.append(local_files_only)
        raise LocalEntryNotFoundError("not there")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ValueError, match="reward 'mine' needs") as told:
        locate(SOURCE, "mine")
    message = str(told.value)
    assert "reward 'mine' needs config.json, model.safetensors or pytorch_model.bin of someone/model" in message
    assert "licence: MIT" in message
    assert (
        "hf download someone/model config.json model.safetensors --local-dir $MMALIGN_REWARDS/someone--model" in message
    )
    assert str(tmp_path / "someone--model") in message
    assert asked
    assert all(asked), "offline the hub is not asked"
    with pytest.raises(ValueError, match="curl -O somewhere"):
        locate(PAGE, "mine")
    with pytest.raises(ValueError, match=r"does not exist; give a file or folder with config\.json"):
        locate(SOURCE, "mine", tmp_path / "nothing")


def test_with_a_network_the_download_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MMALIGN_REWARDS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    folder = put(tmp_path, "config.json", "model.safetensors")

    def download(repository, name, local_files_only):
        if local_files_only:
            raise LocalEntryNotFoundError("not there")
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert [path.name for path in locate(SOURCE, "mine")] == ["config.json", "model.safetensors"]
    assert "mine: downloading someone/model config.json (MIT)" in capsys.readouterr().err


def test_a_wrong_hash_is_refused(tmp_path):
    file = put(tmp_path, "head.pt") / "head.pt"
    good = Source("a/b", ("head.pt",), "MIT", sha256={"head.pt": hashlib.sha256(b"x").hexdigest()})
    assert locate(good, "mine", file) == [file]
    bad = Source("a/b", ("head.pt",), "MIT", sha256={"head.pt": "0" * 64})
    with pytest.raises(ValueError, match=r"head.pt: SHA-256 is 2d7116.*published is 0000.*sha256sum head.pt >> SHA256"):
        locate(bad, "mine", file)


def test_a_hash_that_the_user_states_comes_first(tmp_path):
    """For weights of one's own under a published name, and for files whose hash nobody publishes."""
    folder = put(tmp_path, "head.pt", "other.pt")
    bad = Source("a/b", ("head.pt",), "MIT", sha256={"head.pt": "0" * 64})
    sums = folder / "SHA256SUMS"
    sums.write_text(f"{'1' * 64}  other.pt\n{hashlib.sha256(b'x').hexdigest()} *head.pt\n")
    assert locate(bad, "mine", folder) == [folder / "head.pt"]
    other = Source("a/b", ("other.pt",), "MIT")
    with pytest.raises(ValueError, match=r"other.pt: SHA-256 is 2d7116.*stated in SHA256SUMS is 1111"):
        locate(other, "mine", folder)
    (folder / "other.pt").write_bytes(b"longer")
    sums.write_text(f"{hashlib.sha256(b'longer').hexdigest()}  other.pt\n")
    assert locate(other, "mine", folder) == [folder / "other.pt"]
    sums.write_text("head.pt\n")
    with pytest.raises(ValueError, match=r"SHA256SUMS, line 1: 'head.pt' is not a SHA-256 and a file name"):
        locate(other, "mine", folder)


def test_a_file_in_the_hubs_cache_has_the_hash_it_is_named_by(tmp_path):
    """The cache links snapshots/COMMIT/NAME to blobs/SHA256 for what is in LFS."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a"
    put(blobs, hashlib.sha256(b"x").hexdigest(), "1" * 64)
    snapshot.mkdir(parents=True)
    for name, blob in (("good.pt", hashlib.sha256(b"x").hexdigest()), ("bad.pt", "1" * 64)):
        (snapshot / name).symlink_to(blobs / blob)
    assert locate(Source("a/b", ("good.pt",), "MIT"), "mine", snapshot) == [snapshot / "good.pt"]
    with pytest.raises(ValueError, match=r"bad.pt: SHA-256 is 2d7116.*told by the hub is 1111"):
        locate(Source("a/b", ("bad.pt",), "MIT"), "mine", snapshot)


def test_the_published_hashes_are_of_files_that_are_asked_for():
    from reward_models import aesthetic, clipscore, hps, imagereward

    sources = [aesthetic.HEAD, clipscore.SOURCE, clipscore.LARGE, hps.SOURCES["2.1"], imagereward.VOCABULARY]
    for source in sources:
        asked = {name for entry in source.files for name in entry.split("|")}
        assert source.sha256
        assert set(source.sha256) <= asked
        assert all(len(digest) == 64 and int(digest, 16) for digest in source.sha256.values())


def test_a_pickled_module_is_refused_and_not_run(tmp_path):
    class Trap(nn.Linear):
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'run')!r}, 'w')",))

    torch.save(Trap(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"does not hold plain tensors.*convert it once: torch.save\(torch.load"):
        read_state(tmp_path / "module.pth")
    assert not (tmp_path / "run").exists()
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, not tensors by name"):
        read_state(tmp_path / "list.pth")


def test_every_key_and_shape_must_match():
    state = nn.Linear(2, 3).state_dict()

    def wrong(changed):
        module = build(lambda: nn.Linear(2, 3))
        with pytest.raises(ValueError, match="these are other weights") as told:
            fill(module, changed, "file.pt", dtype="float32", device=CPU)
        return str(told.value)

    assert "1 missing (bias)" in wrong({"weight": state["weight"]})
    assert "1 unexpected (extra)" in wrong({**state, "extra": torch.zeros(1)})
    assert "weight is (2, 3) instead of (3, 2)" in wrong({**state, "weight": torch.zeros(2, 3)})
    moved = {**state, "position_ids": torch.tensor([[0, 2]])}
    with pytest.raises(ValueError, match="position_ids is not 0, 1, 2"):
        fill(build(lambda: nn.Linear(2, 3)), moved, "file.pt", dtype="float32", device=CPU)


def test_older_files_hold_positions_which_are_computed_here(tmp_path):
    from reward_models.clip_towers import transformers_towers

    model = tiny_clip()
    folder = save_clip(model, tmp_path, pickled=True)
    towers = transformers_towers([folder / "config.json", folder / "pytorch_model.bin"], device="cpu", dtype="float32")
    loaded, original = dict(towers.model.named_buffers()), dict(model.named_buffers())
    assert loaded.keys() == original.keys()
    assert all(torch.equal(loaded[name], original[name]) for name in original)
    assert not any(parameter.requires_grad for parameter in towers.model.parameters())
    assert not towers.model.training
