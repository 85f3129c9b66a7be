"""The playground model's own samples, labelled by a reward the way a user would: ``mmalign label`` on a folder."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from rich.console import Console

from benchmarks.own_samples import samples
from mmalign.cli.__main__ import main as mmalign
from mmalign.cli.manifest import MANIFEST, write_pictures
from mmalign.playground.on_policy import PairSettings

# Of the pictures that a reward is trained on: apart from those of any seed of the evidence.
OTHERS = 1000
REWARD_STEPS = 200
TINY_CLIP = "playground/tiny-clip"


def run_mmalign(*arguments: object) -> None:
    """A command line of mmalign, in this process; RuntimeError where it fails (it has said why)."""
    line = [str(argument) for argument in arguments]
    if mmalign(line):
        raise RuntimeError(f"mmalign {' '.join(line)} failed")


def label(reward: Sequence[object], settings: PairSettings, folder: Path, out: Path, console: Console) -> Path:
    """``out``: best-against-worst pairs of the samples by ``reward`` (arguments of mmalign label); made once."""
    if not out.exists():
        run_mmalign("label", "--pictures", generated(settings, folder, console), *reward, "--out", out)
    return out


def generated(settings: PairSettings, folder: Path, console: Console) -> Path:
    """The samples as PNG files with a manifest, as ``mmalign generate`` leaves them."""
    target = folder / "generated"
    if not (target / MANIFEST).is_file():
        groups = samples(settings, folder, console)
        pictures: list[Image.Image] = [picture for _, of_prompt in groups for picture in of_prompt]
        prompts = [prompt for prompt, of_prompt in groups for _ in of_prompt]
        write_pictures(target, {"sampled": pictures}, prompts, list(range(len(pictures))), {"model": settings.model})
    return target


def trained_reward(settings: PairSettings, folder: Path, console: Console) -> Path:
    """A run of playground/reward_bt on gold labels of samples from another seed; made once, and gone on with."""
    run = folder / "reward"
    if not (run / "report.html").exists():
        others = replace(settings, seed=settings.seed + OTHERS)
        gold = ["--reward", "oracle", "--which", "all"]
        pairs = label(gold, others, folder / "others", folder / "others.parquet", console)
        changes = ["data.source=canonical", f"data.path={pairs}", f"output={run}", f"training.seed={settings.seed}"]
        begun = ["--resume"] if list(run.glob("checkpoints/step_*")) else []
        run_mmalign("train", "playground/reward_bt", *changes, f"training.steps={REWARD_STEPS}", *begun)
    return run


def _gold(settings: PairSettings, folder: Path, console: Console) -> Path:
    return label(["--reward", "oracle"], settings, folder, folder / "gold_labelled.parquet", console)


def _by_reward(settings: PairSettings, folder: Path, console: Console) -> Path:
    reward = ["--reward", "clip-reward", "--weights", trained_reward(settings, folder, console)]
    return label(reward, settings, folder, folder / "reward_labelled.parquet", console)


def _by_clip(settings: PairSettings, folder: Path, console: Console) -> Path:
    reward = ["--reward", "clip-reward", "--weights", TINY_CLIP]
    return label(reward, settings, folder, folder / "clip_labelled.parquet", console)


LABELLED: dict[str, Callable[[PairSettings, Path, Console], Path]] = {
    "gold_labelled": _gold,
    "reward_labelled": _by_reward,
    "clip_labelled": _by_clip,
}
