"""``mmalign evaluate images``: did alignment help? Paired win rate, attributes and diversity, base against aligned."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mmalign.cli.evaluate_reward import reward as reward_command
from mmalign.cli.evaluate_vlm import vlm as vlm_command
from mmalign.cli.manifest import read_pictures, require_empty, write_pictures
from mmalign.cli.sampling import Dtype, Sampler, aligned_weights, progress_bars, read_prompts, sample_models

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.evaluation import ImageScorer

    Rows = list[list[Image]]

app = typer.Typer(no_args_is_help=True, help="Measure an aligned model against its base, or a reward model.")
app.command("reward")(reward_command)
app.command("vlm")(vlm_command)


@app.callback()
def _group() -> None:
    """Measure an aligned model against its base, or a reward model against people."""


@app.command("images")
def images(
    out: Annotated[Path, typer.Option(help="New folder for evaluation.json, and for the pictures where sampled.")],
    base: Annotated[str | None, typer.Option(help="Base model: a folder, a hub id, or playground/tiny-sdxl.")] = None,
    aligned: Annotated[Path | None, typer.Option(help="Output folder of a run.")] = None,
    base_images: Annotated[
        Path | None, typer.Option(help="Instead of sampling: OUT/base of [bold]mmalign generate[/bold].")
    ] = None,
    aligned_images: Annotated[
        Path | None, typer.Option(help="Instead of sampling: OUT/aligned, same prompts and seeds.")
    ] = None,
    reward: Annotated[
        str, typer.Option(help="What judges: oracle (playground captions), or an installed reward model.")
    ] = "oracle",
    prompts: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="File with a prompt per line, or JSONL.")
    ] = None,
    held_out: Annotated[int | None, typer.Option(min=2, help="Or: this many held-out playground captions.")] = None,
    level: Annotated[str | None, typer.Option(help="Level of --held-out captions. Default single.")] = None,
    seeds_per_prompt: Annotated[int | None, typer.Option(min=1, help="Pictures per prompt. Default 1.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. Default 30.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale. Default 5.")] = None,
    lora_scale: Annotated[float | None, typer.Option(help="Strength of the LoRA. Default 1.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures sampled at once. Default 4.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Precision of the weights. Default float32.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1; default: CUDA where there is one.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the pictures' noise and of the intervals.")] = 0,
) -> None:
    """Sample both models with the same noise (or read two folders), judge every picture, and compare."""
    require_empty(out)
    how = {
        "steps": steps,
        "guidance": guidance,
        "lora_scale": lora_scale,
        "batch_size": batch_size,
        "dtype": dtype,
        "device": device,
    }
    if base_images is not None or aligned_images is not None:
        sampled = {"base": base, "aligned": aligned, "prompts": prompts, "held_out": held_out, "level": level}
        _refuse_ignored({**sampled, "seeds_per_prompt": seeds_per_prompt, **how})
        texts, sides = _read_both(base_images, aligned_images)
        scorer = _scorer(reward, texts)
    else:
        if base is None or aligned is None:
            raise ValueError("give --base NAME and --aligned RUN_DIR, or --base-images DIR and --aligned-images DIR")
        texts = _prompts(prompts, held_out, level)
        sampler = Sampler(base, aligned_weights(aligned), **{k: v for k, v in how.items() if v is not None})
        sampler.check()
        scorer = _scorer(reward, texts)
        sides = _sample_both(sampler, texts, seeds_per_prompt or 1, seed, out)
    _compare(texts, sides, scorer, seed, out)


def _compare(texts: list[str], sides: Mapping[str, "Rows"], scorer: "ImageScorer", seed: int, out: Path) -> None:
    from mmalign.evaluation import evaluate_images
    from mmalign.pictures import comparison_grid, save_png

    with progress_bars() as progress:
        total = sum(len(row) for rows in sides.values() for row in rows)
        task = progress.add_task(f"judging by {scorer.name}", total=total)
        result = evaluate_images(
            *(sides["base"], sides["aligned"], texts, scorer),
            seed=seed,
            progress=lambda done: progress.advance(task, done),
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(result.to_json(), encoding="utf-8")
    shown = slice(0, 8)
    save_png(comparison_grid(sides["base"][shown], sides["aligned"][shown], texts[shown]), out / "grid.png")
    result.print(Console())
    typer.echo(f"written: {out / 'evaluation.json'}, {out / 'grid.png'}")


def _refuse_ignored(options: Mapping[str, Any]) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)} would be ignored: with --base-images and --aligned-images nothing is sampled"
        )


def _prompts(file: Path | None, held_out: int | None, level: str | None) -> list[str]:
    if (file is None) == (held_out is None):
        raise ValueError("give prompts either with --prompts FILE or with --held-out N")
    if held_out is None:
        if level is not None:
            raise ValueError("--level would be ignored: it belongs to --held-out N")
        return read_prompts(file, None)
    from mmalign.playground.scene import held_out_prompts

    return held_out_prompts(level or "single", held_out)


def _scorer(reward: str, prompts: list[str]) -> "ImageScorer":
    from mmalign.evaluation import find_scorer

    if reward == "oracle":
        # The oracle reads playground captions only; better said now than after an hour of sampling.
        from mmalign.playground.captions import parse

        for prompt in prompts:
            parse(prompt)
    return find_scorer(reward)


def _sample_both(sampler: Sampler, prompts: list[str], per_prompt: int, seed: int, out: Path) -> dict[str, "Rows"]:
    every_prompt = [prompt for prompt in prompts for _ in range(per_prompt)]
    # Every picture has noise of its own: noise shared by all prompts would make them move together, and the
    # interval, which resamples prompts, too narrow.
    first = seed * 1_000_000
    seeds = list(range(first, first + len(every_prompt)))
    pictures = sample_models(sampler, every_prompt, seeds)
    write_pictures(out, pictures, every_prompt, seeds, sampler.settings())
    return {model: _rows(images, per_prompt) for model, images in pictures.items()}


def _rows(images: "list[Image]", per_prompt: int) -> "Rows":
    return [images[start : start + per_prompt] for start in range(0, len(images), per_prompt)]


def _read_both(base: Path | None, aligned: Path | None) -> tuple[list[str], dict[str, "Rows"]]:
    """Prompts, and pictures [prompts][seeds] of two folders that hold the same prompts and seeds."""
    from PIL import Image

    if base is None or aligned is None:
        raise ValueError("--base-images and --aligned-images belong together; give both")
    files = {"base": read_pictures(base), "aligned": read_pictures(aligned)}
    if files["base"].keys() != files["aligned"].keys():
        raise ValueError(_difference(base, aligned, set(files["base"]) ^ set(files["aligned"])))
    prompts = list(dict.fromkeys(prompt for prompt, _ in files["base"]))
    keys = [[key for key in files["base"] if key[0] == prompt] for prompt in prompts]
    sides = {
        model: [[Image.open(found[key]).convert("RGB") for key in row] for row in keys]
        for model, found in files.items()
    }
    return prompts, sides


def _difference(base: Path, aligned: Path, only_one: set[tuple[str, int]]) -> str:
    prompt, seed = min(only_one)
    return (
        f"{base} and {aligned} do not hold the same prompts and seeds: {len(only_one)} pictures are in one only, "
        f"for example seed {seed} of {prompt!r}. Make both with one call of mmalign generate"
    )
