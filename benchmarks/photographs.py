"""Real photographs through every option of the readers: ``python -m benchmarks.photographs FILE``.

FILE has the columns of Pick-a-Pic v2. Each line of the table is one run of two steps of ``sdxl/dpo_lora`` on the
playground's tiny-sdxl with one option changed: what was read, how many shapes the batches had, and the first loss,
which is log 2 for DPO on hard or soft labels. The file is also converted to each format, read back and trained on.
Results go to ``benchmarks/results/photographs.{json,md}``.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

RESULTS = Path("benchmarks/results")
TRAIN = (
    "model={name: playground/tiny-sdxl, lora: {rank: 4, alpha: 4}}",
    "training={steps: 2, batch_size: 4, learning_rate: 1e-4, checkpoint_every: 2}",
    "evaluation={}",
)
KTO = "objective=[{loss: kto, beta: 5000}]"
# Option -> overrides of the recipe.
OPTIONS: dict[str, tuple[str, ...]] = {
    "as the recipe says": (),
    "source: auto": ("data.source=auto",),
    "ties: soft": ("data.ties=soft", "objective.0.loss=soft_dpo"),
    "ties: error": ("data.ties=error",),
    "as: unary, mixed: each": ("data.as=unary", KTO),
    "as: unary, mixed: drop": ("data.as=unary", "data.mixed=drop", KTO),
    "as: unary, mixed: desirable": ("data.as=unary", "data.mixed=desirable", KTO),
    "crop: random, flip: false": ("data.crop=random", "data.flip=false"),
    "resolution: 128": ("data.resolution=128",),
    "buckets": ("data.buckets={step: 16}",),
    "buckets of given sizes": ("data.buckets={sizes: [[48, 80], [80, 48]]}",),
    "caption_dropout: 0.5": ("data.caption_dropout=0.5",),
    "max_rows: 10": ("data.max_rows=10",),
    "held_out: 0.2": ("data.held_out=0.2", "evaluation.every=1"),
    "verify: head": ("data.verify=head",),
    "shuffle: blocks": ("data.shuffle=blocks", "data.shuffle_window=2"),
    "cache: memory, flip: false": ("data.cache=memory", "data.flip=false"),
    "relabel: oracle": ("data.relabel=oracle",),
    "cache: disk, moments": ("data.cache=disk",),
    "cache: disk, sampled, bfloat16": ("data.cache=disk", "data.cache_latents=sampled", "data.cache_dtype=bfloat16"),
}
CONVERTED: dict[str, tuple[str, ...]] = {
    "canonical": ("data.source=canonical",),
    "canonical, unary": ("data.source=canonical", KTO),
    "pickapic": ("data.source=pickapic",),
    "images": ("data.source=images",),
}


def main() -> None:
    """Run every option; write and show the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/photographs"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    console = Console()
    runs = [
        run(name, arguments.file, changes, arguments.work)
        for name, changes in track(OPTIONS.items(), "options", console=console)
    ]
    for name, changes in track(CONVERTED.items(), "formats", console=console):
        converted = convert(name, arguments.file, arguments.work)
        runs.append(run(f"converted to {name}", converted, changes, arguments.work))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    results = {"command": f"python -m benchmarks.photographs {arguments.file.name}", "commit": commit, "runs": runs}
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "photographs.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (arguments.results / "photographs.md").write_text(render(results), encoding="utf-8")
    console.print(render(results), markup=False)


def run(name: str, data: Path, changes: tuple[str, ...], work: Path) -> dict[str, Any]:
    """Two steps through the command line, as a user does; a refusal is recorded with its message."""
    folder = work / "".join(letter if letter.isalnum() else "_" for letter in name)
    size = () if any(change.startswith("data.resolution") for change in changes) else ("data.resolution=64",)
    command = ["train", "sdxl/dpo_lora", *TRAIN, *size, *changes, f"data.path={data}", f"output={folder}"]
    shutil.rmtree(folder, ignore_errors=True)
    done = mmalign(*command)
    if done.returncode:
        return {"option": name, "refused": " ".join(done.stderr[done.stderr.find("error:") :].split())}
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if line.get("split", "train") == "train" and "loss" in line]
    rows = json.loads((folder / "data.json").read_text(encoding="utf-8"))["rows"]
    said = (folder / "data.txt").read_text(encoding="utf-8")
    return {"option": name, "rows": rows, "data": " ".join(said.split()), "losses": [line["loss"] for line in steps]}


def convert(form: str, source: Path, work: Path) -> Path:
    """The file in another format."""
    to, _, kind = form.partition(", ")
    target = work / "converted" / (form.replace(", ", "_") + ("" if to == "images" else ".parquet"))
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        done = mmalign("data", "convert", source, "--to", to, "--as", kind or "native", "--out", target)
        done.check_returncode()
    return target / "rows.jsonl" if to == "images" else target


def mmalign(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mmalign.cli.__main__", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def render(results: dict[str, Any]) -> str:
    """Markdown of what every option did."""
    lines = [
        "# Real photographs through every option of the readers",
        "",
        f"`{results['command']}` at commit `{results['commit'][:12]}`; two steps of `sdxl/dpo_lora` on tiny-sdxl for "
        f"each line. DPO starts at log 2 = {math.log(2):.4f}, KTO at 0.5.",
        "",
        "| option | rows trained on | loss of step 1, 2 | what the reader said |",
        "|---|---|---|---|",
    ]
    for each in results["runs"]:
        if "refused" in each:
            lines.append(f"| {each['option']} | refused | | {each['refused']} |")
            continue
        losses = ", ".join(f"{loss:.4f}" for loss in each["losses"])
        lines.append(f"| {each['option']} | {each['rows']['train']} | {losses} | {each['data'].replace('|', '')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
