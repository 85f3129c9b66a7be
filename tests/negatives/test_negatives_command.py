"""`mmalign negatives` as a user meets it: a process of its own, an interruption, mistakes before a model loads."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmalign.cli.__main__ import main
from mmalign.negatives import GENERATORS, Answered, Origin, make_negatives, method_of, open_pictures, open_rows
from mmalign.negatives.building import work_folder
from mmalign.negatives.kit import Kit
from mmalign.playground.looking import looks
from mmalign.training.config import DataConfig
from mmalign.types import ImagePart, Message, VLMPair
from mmalign.vlm_data import open_source
from tests.vlm.vlm_rows import picture

ROOT = Path(__file__).parents[2]
SAYS = "A red cube to the left of a small ball."


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of the playground, and one file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, look in enumerate(looks(3, 4)):
        look.image.save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def sft_rows(folder: Path, number: int = 5) -> Path:
    lines = []
    for row in range(number):
        (folder / f"{row}.png").write_bytes(picture(row).read())
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": SAYS}]
        lines.append({"id": f"r{row}", "image": f"{row}.png", "conversations": turns})
    path = folder / "sft.json"
    path.write_text(json.dumps(lines))
    return path


def test_pictures_become_pairs_that_inspect_reads(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bdhs.parquet"
    given = {
        "--images": pictures,
        "--model": "playground/tiny-llava",
        "--out": out,
        "--prompt": "describe the picture .",
    }
    given |= {"--dtype": "float32", "--device": "cpu", "--max-new-tokens": 30, "--temperature": 0.7, "--seed": 3}
    line = ["negatives", "bdhs", "--set", "threshold=1.0", *(str(word) for pair in given.items() for word in pair)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mmalign.cli", *line],
        capture_output=True, text=True, cwd=tmp_path, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"3 pairs: {out}" in done.stdout
    assert "1 row without a pair:" in done.stderr
    assert re.search(r"1: not an image in a known format .*\(broken.jpg\)", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    for row in open_source(DataConfig(source="auto", path=str(out))):
        assert row.chosen != row.rejected
        assert row.sample_id.endswith(".png#bdhs")
        assert row.images[0].read() == (pictures / row.sample_id.removesuffix("#bdhs")).read_bytes()
        made_by = row.extras["made_by"]
        assert (made_by["method"], made_by["model"], made_by["seed"]) == ("bdhs", "playground/tiny-llava", 3)
        assert made_by["settings"]["threshold"] == 1.0
        assert made_by["decoding"] == {"max_new_tokens": 30, "temperature": 0.7, "top_p": 1.0}
        assert len(made_by["model_fingerprint"]) == 64
    capsys.readouterr()
    assert main(["data", "inspect", str(out), "--out", str(tmp_path / "inspected")]) == 0
    assert "vlm_canonical, pairs of responses" in capsys.readouterr().out


def test_mistakes_are_told_together_before_a_model_loads(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmalign.models.vlm.load_vlm", None)
    rows, out = sft_rows(tmp_path, 2), tmp_path / "out.parquet"

    def told(*line: object) -> str:
        capsys.readouterr()
        assert main(["negatives", *map(str, line)]) == 2
        return capsys.readouterr().err

    everything = told("bdhs", "--out", "x.json", "--set", "threshold=3", "--source", "sft", "--top-p", "0.5")
    for words in ("ends in .parquet", "threshold=3", "--rows FILE, or --images", "--source would be ignored",
                  "give --model", "--top-p would be ignored"):  # fmt: skip
        assert words in everything
    model = ("--model", "playground/tiny-llava", "--out", out)
    assert "Did you mean 'bdhs'" in told("bdsh", "--rows", rows, *model)
    assert "no setting 'treshold'; it has threshold" in told("bdhs", "--rows", rows, *model, "--set", "treshold=1")
    assert "valid integer" in told("bdhs", "--rows", rows, *model, "--set", "iterations=many")
    assert "a LoRA" in told("bdhs", "--rows", rows, "--model", lora(tmp_path), "--out", out)
    assert "--model would be ignored" in told("text_swap", "--rows", rows, *model)
    assert "bare pictures have none" in told("text_swap", "--images", pictures, "--out", out)
    assert "--prompt would be ignored" in told("bdhs", "--rows", rows, *model, "--prompt", "Say.")
    assert "nothing is drawn" in told("bdhs", "--rows", rows, *model, "--temperature", "0", "--top-p", "0.5")
    assert "not one of the first 2 rows' pictures" in told(
        "bdhs", "--rows", rows, "--images", tmp_path / "lora", *model
    )
    assert "--methods shows all" in told("--out", out)
    assert main(["negatives", "--methods"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in GENERATORS if name not in shown] == []


def lora(folder: Path) -> Path:
    (folder / "lora").mkdir()
    (folder / "lora" / "adapter_config.json").write_text("{}")
    return folder / "lora"


def test_interrupted_it_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two rows and in the middle of a line; also where rows got other pictures or several pairs."""
    rows, method = open_rows(str(sft_rows(tmp_path))), Doubling()
    (tmp_path / "one").mkdir()
    whole, out = tmp_path / "one" / "rows.parquet", tmp_path / "rows.parquet"
    origin = Origin(rows.fingerprint)
    assert make_negatives("doubling", method, rows, whole, origin=origin).pairs == 8
    Doubling.stop_at = "sft.json:3"
    with pytest.raises(KeyboardInterrupt):
        make_negatives("doubling", method, rows, out, origin=origin)
    journal = tmp_path / "rows.parquet.journal"
    journal.write_bytes(journal.read_bytes() + b'["sft.json:3", {"pai')
    assert not out.exists()
    with pytest.raises(ValueError, match="of other settings"):
        make_negatives("doubling", method, rows, out, origin=Origin("other rows"))
    Doubling.stop_at, Doubling.calls = "", []
    built = make_negatives("doubling", method, rows, out, origin=origin)
    assert Doubling.calls == ["sft.json:3", "sft.json:4"]
    assert out.read_bytes() == whole.read_bytes()
    assert built.reasons == {"nothing to say": 1}
    assert not journal.exists()
    assert not work_folder(out).exists()
    table = open_source(DataConfig(source="auto", path=str(out)))
    first = [row.sample_id.removesuffix("#doubling") for row in table][:3]
    assert first == ["sft.json:0/a", "sft.json:0/b", "sft.json:2/a"]
    assert [image.read() for image in table[0].images] == [picture(0).read(), picture(77).read()]
    assert table[0].prompt[-1].content == (ImagePart(0), ImagePart(1), "Which?")


class Doubling:
    """Two pairs of each row about two pictures, of which one is new."""

    speaks = False
    reads_response = True
    stop_at = ""
    calls: list[str] = []  # noqa: RUF012 - a test's record

    __dataclass_fields__: dict[str, Any] = {}  # noqa: RUF012 - no settings

    def open(self, kit: Kit) -> Callable[[Answered, int], Any]:
        kit.folder.mkdir(exist_ok=True)

        def make(row: Answered, seed: int) -> Any:
            if row.sample_id == self.stop_at:
                raise KeyboardInterrupt
            self.calls.append(row.sample_id)
            if row.sample_id == "sft.json:1":
                return "nothing to say"
            prompt = (Message("user", (ImagePart(0), ImagePart(1), "Which?")),)
            images = (*row.images, picture(77))
            return tuple(
                VLMPair(f"{row.sample_id}/{name}", prompt, row.response, f"{seed} {name}", images, extras={"n": name})
                for name in "ab"
            )

        return make


@pytest.mark.parametrize("form", ["conversations", "messages", "question", "pairs"])
def test_rows_with_one_response_are_read_in_every_form(form: str, tmp_path: Path) -> None:
    data = picture(1).read()
    (tmp_path / "1.png").write_bytes(data)
    if form == "conversations":
        path = sft_rows(tmp_path)
    elif form == "pairs":
        path = tmp_path / "pairs.jsonl"
        path.write_text(json.dumps({"prompt": "What is it?", "chosen": SAYS, "rejected": "No.", "image": "1.png"}))
    else:
        said = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": SAYS}]
        fields = {"messages": said} if form == "messages" else {"question": "What is it?", "answer": SAYS}
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist([{**fields, "image": {"bytes": data, "path": None}}]), path)
    row = open_rows(str(path))[-1 if form == "pairs" else 0]
    assert (row.response, row.prompt[-1].content, len(row.images)) == (SAYS, (ImagePart(0), "What is it?"), 1)
    if form != "conversations":
        assert row.images[0].read() == data
    assert len(open_rows(str(path), max_rows=1)[:5]) == 1


def test_what_cannot_be_read_is_said(pictures: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"image": "1.png", "words": "x"}\n{"conversations": [{"from": "human", "value": "?"}]}')
    with pytest.raises(
        ValueError, match=r"no usable row.*wanted are conversations, messages.*must end with the assist"
    ):
        open_rows(str(wrong))
    with pytest.raises(ValueError, match="source='stf'"):
        open_rows(str(wrong), source="stf")
    assert [row.sample_id for row in open_pictures(pictures)] == ["0.png", "1.png", "2.png", "broken.jpg"]
    (tmp_path / "empty").mkdir()
    for folder, words in ((tmp_path / "empty", "holds no pictures"), (wrong, "no folder")):
        with pytest.raises(ValueError, match=words):
            open_pictures(folder)
    with pytest.raises(ValueError, match="request"):
        open_pictures(pictures, " ")
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="not one of the first 1 rows"):
        open_pictures(tmp_path)


def test_settings_of_methods(tmp_path: Path) -> None:
    for name in GENERATORS:
        assert method_of(name, {}) == GENERATORS[name]()
    for name, settings, words in (
        ("bdhs", {"iterations": 0}, "at least 1"),
        ("bdhs", {"most_alike": 1.5}, "most_alike"),
        ("bdhs", {"similarity": "mpnet"}, "no folder with a config"),
        ("bdhs_noise", {"step": 1000}, "step"),
        ("dropout_ntp", {"keep": 1}, "keep"),
        ("m3id", {"gate": 2}, "gate"),
        ("m3id", {"rejected": "none"}, "'blind' or 'plain'"),
        ("povid_image", {"step": -1}, "step"),
        ("text_swap", {"group": "wings"}, "group='wings'"),
        ("text_swap", {"vocabulary": "french"}, "neither english nor playground"),
    ):
        with pytest.raises(ValueError, match=words):
            method_of(name, settings)
    own = tmp_path / "words.json"
    own.write_text('{"animal": ["cat", "dog"]}')
    method = method_of("text_swap", {"vocabulary": str(own), "group": "animal"})
    row = Answered("row", (Message("user", ("What?",)),), "A cat.")
    made = method.open(Kit((row,), tmp_path))(row, 0)
    assert isinstance(made, VLMPair)
    assert made.rejected == "A dog."
    own.write_text("[1]")
    with pytest.raises(ValueError, match="must hold"):
        method_of("text_swap", {"vocabulary": str(own)})
    with pytest.raises(ValueError, match="speaks with a model"):
        make_negatives("bdhs", method_of("bdhs", {}), (row,), tmp_path / "x.parquet", origin=Origin(""))
    spoken = replace(row, unusable="has a video")
    with pytest.raises(ValueError, match="has a video"):
        make_negatives("text_swap", method_of("text_swap", {}), (spoken,), tmp_path / "x.parquet", origin=Origin(""))
