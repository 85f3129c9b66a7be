"""``mmalign evaluate images``: sampling or reading pictures, judging them, and what is written."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from mmalign.evaluation import ImageEvaluation, ImageScores
from tests.cli.conftest import FakeModels, Line, Run


class RedScorer:
    """Score = the red value of the first pixel; the fake aligned model is redder than its base."""

    name = "red"

    def __call__(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> ImageScores:
        return ImageScores([float(image.getpixel((0, 0))[0]) for image in images])  # type: ignore[index]


@pytest.fixture(autouse=True)
def scorers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the scorers that were asked for; all of them are the red one, but ``green``, which is not installed."""
    asked: list[str] = []

    def find_scorer(name: str) -> RedScorer:
        asked.append(name)
        if name == "green":
            raise ValueError("no reward model 'green'")
        return RedScorer()

    monkeypatch.setattr("mmalign.evaluation.find_scorer", find_scorer)
    return asked


def result(out: Path) -> ImageEvaluation:
    return ImageEvaluation.from_json((out / "evaluation.json").read_text())


def test_sampling_both_models_with_the_same_noise(
    run: Run, models: FakeModels, lora: Path, tmp_path: Path, scorers: list[str]
) -> None:
    out, prompts = tmp_path / "out", tmp_path / "prompts.txt"
    prompts.write_text("a\nb\nc\n")
    line = run(
        *("evaluate", "images", "--base", "tiny", "--aligned", lora, "--reward", "red", "--prompts", prompts),
        *("--seeds-per-prompt", "2", "--steps", "3", "--guidance", "1.5", "--batch-size", "6", "--lora-scale", "0.3"),
        *("--dtype", "float16", "--device", "cpu", "--seed", "2", "--out", out),
    )
    assert line.code == 0, line.err
    base, aligned = models.sampled
    assert base["prompts"] == ["a", "a", "b", "b", "c", "c"]
    assert base["seeds"] == aligned["seeds"]
    assert len(set(base["seeds"])) == 6, "noise of its own for every picture"
    assert (base["steps"], base["guidance_scale"], base["batch_size"]) == (3, 1.5, 6)
    assert [pipe["lora_scale"] for pipe in models.loaded] == [1.0, 0.3]
    assert {(pipe["dtype"], pipe["device"]) for pipe in models.loaded} == {("float16", "cpu")}
    assert scorers == ["red"]
    found = result(out)
    assert (found.n_prompts, found.n_seeds, found.seed, found.win_rate.rate) == (3, 2, 2, 1.0)
    assert "win rate 1.000 [1.000, 1.000]" in line.out
    assert (out / "grid.png").is_file()
    assert len(list(out.glob("*/*.png"))) == 12


def test_another_seed_is_other_noise(run: Run, models: FakeModels, lora: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        arguments = ("--base", "tiny", "--aligned", lora, "--held-out", "4", "--reward", "red", "--seed", seed)
        assert run("evaluate", "images", *arguments, "--out", tmp_path / str(seed)).code == 0
    first, second = models.sampled[0], models.sampled[2]
    assert first["prompts"] == second["prompts"]
    assert not set(first["seeds"]) & set(second["seeds"])


def test_held_out_captions_of_a_level(run: Run, models: FakeModels, lora: Path, tmp_path: Path) -> None:
    from mmalign.playground.scene import held_out_prompts

    for level in (None, "pair"):
        arguments = ["--base", "tiny", "--aligned", lora, "--held-out", "3", "--reward", "red"]
        arguments += ["--level", level] if level else []
        assert run("evaluate", "images", *arguments, "--out", tmp_path / str(level)).code == 0
        assert models.sampled[-1]["prompts"] == held_out_prompts(level or "single", 3)


def generated(run: Run, lora: Path, out: Path, seeds: str = "1,2", prompts: Sequence[str] = ("a", "b")) -> Line:
    texts = [argument for prompt in prompts for argument in ("--prompt", prompt)]
    return run("generate", "--base", "tiny", "--aligned", lora, *texts, "--seeds", seeds, "--out", out)


def test_two_folders_made_by_generate(run: Run, models: FakeModels, lora: Path, tmp_path: Path) -> None:
    assert generated(run, lora, tmp_path / "pictures").code == 0
    folders = ("--base-images", tmp_path / "pictures/base", "--aligned-images", tmp_path / "pictures/aligned")
    line = run("evaluate", "images", *folders, "--reward", "red", "--out", tmp_path / "out")
    assert line.code == 0, line.err
    assert len(models.sampled) == 2, "nothing is sampled again"
    found = result(tmp_path / "out")
    assert (found.n_prompts, found.n_seeds, found.score.base.value, found.score.aligned.value) == (2, 2, 0.0, 200.0)
    assert "written: " in line.out


def test_pictures_are_paired_by_prompt_and_seed_not_by_order(
    run: Run, models: FakeModels, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert generated(run, lora, tmp_path / "x", seeds="1,2", prompts=("a", "b")).code == 0
    assert generated(run, lora, tmp_path / "y", seeds="2,1", prompts=("b", "a")).code == 0
    sides = {}

    def evaluate_images(base: object, aligned: object, prompts: object, scorer: object, **options: object) -> None:
        sides.update(base=base, aligned=aligned, prompts=prompts)
        raise RuntimeError("seen enough")

    monkeypatch.setattr("mmalign.evaluation.evaluate_images", evaluate_images)
    folders = ("--base-images", tmp_path / "x/base", "--aligned-images", tmp_path / "y/aligned")
    assert run("evaluate", "images", *folders, "--reward", "red", "--out", tmp_path / "out").code == 1
    assert sides["prompts"] == ["a", "b"]
    for side in ("base", "aligned"):
        assert [[picture.getpixel((0, 0))[1] for picture in row] for row in sides[side]] == [[1, 2], [1, 2]]


def test_folders_with_different_pictures_are_refused(run: Run, models: FakeModels, lora: Path, tmp_path: Path) -> None:
    assert generated(run, lora, tmp_path / "x").code == 0
    assert generated(run, lora, tmp_path / "y", seeds="1,3").code == 0
    folders = ("--base-images", tmp_path / "x/base", "--aligned-images", tmp_path / "y/aligned")
    line = run("evaluate", "images", *folders, "--reward", "red", "--out", tmp_path / "out")
    assert line.code == 2
    assert "do not hold the same prompts and seeds: 4 pictures are in one only, for example seed 2 of 'a'" in line.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "tiny"], "give --base NAME and --aligned RUN_DIR"),
        (["--base-images", "x"], "belong together"),
        (["--base-images", "x", "--aligned-images", "y", "--steps", "3"], "--steps would be ignored"),
        (["--base-images", "x", "--aligned-images", "y", "--held-out", "3", "--device", "cpu"], "--held-out, --device"),
        (["--base-images", "x", "--aligned-images", "y"], "x has no manifest.jsonl"),
        (["--base", "tiny", "--aligned", "run"], "--prompts FILE or with --held-out N"),
        (["--base", "tiny", "--aligned", "run", "--prompts", "p.txt", "--held-out", "3"], "--prompts FILE or with"),
        (["--base", "tiny", "--aligned", "run", "--prompts", "p.txt", "--level", "pair"], "--level would be ignored"),
        (["--base", "tiny", "--aligned", "run", "--held-out", "3", "--level", "hard"], "level 'hard' is unknown"),
        (["--base", "tiny", "--aligned", "gone", "--held-out", "3"], "gone is not a folder"),
        (["--base", "big", "--aligned", "run", "--held-out", "3"], "there is no model 'big'"),
        (["--base", "tiny", "--aligned", "run", "--held-out", "3", "--reward", "green"], "no reward model 'green'"),
        (["--base", "tiny", "--aligned", "run", "--prompts", "p.txt"], "a photo of a dog"),
    ],
)
def test_mistakes_are_told_before_anything_is_sampled(
    run: Run,
    models: FakeModels,
    lora: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a photo of a dog\na photo of a cat\n")
    line = run("evaluate", "images", *arguments, "--out", "out")
    assert line.code == 2
    assert message in line.err
    assert not models.loaded
    assert not (tmp_path / "out").exists()


def test_the_written_evaluation_names_its_kind(run: Run, models: FakeModels, lora: Path, tmp_path: Path) -> None:
    assert generated(run, lora, tmp_path / "x").code == 0
    folders = ("--base-images", tmp_path / "x/base", "--aligned-images", tmp_path / "x/aligned")
    assert run("evaluate", "images", *folders, "--reward", "red", "--out", tmp_path / "out").code == 0
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["scorer"] == "red"
