"""What objectives and corruptions do to tiny-llava, on the same rows: ``python -m benchmarks.vlm_evidence --seeds 0``.

Every arm is the recipe ``playground/vlm_visual`` at half its steps with another objective: same rows and rate. Arms of
``vlm_negatives.MADE`` have the same chosen responses with other rejected ones; those of ``DECODINGS`` train nothing.
Base and arms see the same held-out pictures without habits. Arms that are measured are not run again, and processes
with different arms may work side by side. Writes ``benchmarks/results/vlm_evidence.json`` and the table beside it.
``--small`` runs arms on a few rows and pictures for two steps, to see that they work, and writes no record.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.vlm_negatives import DECODINGS, MADE, decoding_of, made_rows
from benchmarks.vlm_records import COLUMNS, RESULTS, commit, kept, pooled, read, write
from mmalign.evaluation.vlm_playground import Measures, compare, measure
from mmalign.playground.datasets import write_vlm_dataset
from mmalign.playground.looking import Look, looks
from mmalign.quickstart_vlm import MODEL, PICTURES, RECIPE, rows_of_quickstart

RECORD = RESULTS / "vlm_evidence.json"
HALF = ["training.steps=60", "training.checkpoint_every=60", "evaluation.every=60"]
SMALL = ["training.steps=2", "training.warmup_steps=0", "training.checkpoint_every=2", "training.batch_size=4",
         "evaluation.every=2"]  # fmt: skip
TEXT, ANCHOR, SFT = "{loss: dpo, beta: 0.1}", "{loss: anchor, beta: 0.1}", "{loss: sft}"


def visual(change: str) -> str:
    """The chosen response with the picture against itself with another one."""
    return f"{{loss: dpo, beta: 0.1, rejected: chosen@{change}}}"


CORRUPTIONS = ("blank_mean", "noise", "crop", "shuffle", "patch_mask", "retrieved")
ARMS: dict[str, str] = {
    "text dpo": f"[{TEXT}]",
    "text dpo + anchor": f"[{TEXT}, {ANCHOR}]",
    "blank_mean, no anchor": f"[{visual('blank_mean')}]",
    **{f"{name} + anchor": f"[{visual(name)}, {ANCHOR}]" for name in CORRUPTIONS},
    "mdpo (text + crop + anchor)": f"[{TEXT}, {visual('crop')}, {ANCHOR}]",
    "rdpo (text + retrieved)": f"[{TEXT}, {visual('retrieved')}]",
    "mpo (text + bco + sft)": "[{loss: dpo, beta: 0.1, coefficient: 0.8}, "
    "{loss: bco_pair, beta: 0.1, shift: running, coefficient: 0.2}, {loss: sft}]",
    "sft": f"[{SFT}]",
    **dict.fromkeys(MADE, f"[{TEXT}, {ANCHOR}]"),
}
"""Arm -> its objective."""
ALL = [*ARMS, *DECODINGS]


def run_arm(arm: str, seed: int, work: Path, *, small: bool = False) -> None:
    """Train one arm and measure it; nothing happens where that was done."""
    from mmalign.training.loading import load_config
    from mmalign.training.run import train

    slug = "".join(letter if letter.isalnum() or letter == "_" else "-" for letter in arm)
    folder, target = work / f"seed{seed}" / slug, work / f"seed{seed}" / f"{slug}.json"
    if target.exists():
        return
    settings, pictures = rows_of_quickstart(seed), PICTURES
    if small:
        settings, pictures = replace(settings, rows=12), 4
    rows = work / f"seed{seed}.parquet"
    if not rows.exists():
        write_vlm_dataset("vlm", settings, rows)
    if arm in MADE:
        rows = made_rows(arm, rows, work / f"seed{seed}" / f"{slug}.parquet", seed)
    if arm not in DECODINGS and not (folder / "aligned").exists():
        own = [f"data.path={rows}", f"output={folder}", f"training.seed={seed}", f"objective={ARMS[arm]}"]
        train(
            load_config(RECIPE, [*own, *(SMALL if small else HALF)]),
            resume=bool(list(folder.glob("checkpoints/step_*"))),
            command="python -m benchmarks.vlm_evidence",
        )
    shown = looks(pictures, seed)
    if arm in DECODINGS:
        aligned = _measured(MODEL, shown, decoding_of(arm))
    else:
        aligned = _measured(str(folder / "aligned"), shown)
    comparison = compare(_base(shown, seed, work), aligned, seed=seed)
    record = {"arm": arm, "seed": seed, "commit": commit(), "pairs": asdict(settings), "measures": kept(comparison)}
    write(target, json.dumps(record, indent=1) + "\n")


def render(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: one row an arm."""
    lines = [
        f"Each arm is `{RECIPE}` at half its steps with another objective on the same rows; "
        f"{PICTURES} held-out pictures without habits.",
        "`mmalign negatives` made the rejected responses of bdhs, word swap, dropout ntp and m3id-dpo (and the chosen "
        "ones of the last); arms of decoding train nothing.",
        "Base -> aligned (difference [95 % interval: over pictures for one seed, over seeds by Student's t for more]).",
        "",
        f"| arm | seeds | {' | '.join(COLUMNS.values())} |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for arm in ALL:
        of_arm = [record["measures"] for record in records if record["arm"] == arm]
        seeds = ", ".join(str(record["seed"]) for record in records if record["arm"] == arm)
        if of_arm:
            lines.append(f"| {arm} | {seeds} | {' | '.join(pooled(of_arm, name) for name in COLUMNS)} |")
    return "\n".join([*lines, ""])


def _base(shown: Sequence[Look], seed: int, work: Path) -> Measures:
    path = work / f"seed{seed}" / f"base{len(shown)}.json"
    found = read(path)
    if found is None:
        found = _measured(MODEL, shown).ratios
        write(path, json.dumps(found))
    return Measures({name: (tuple(top), tuple(low)) for name, (top, low) in found.items()}, len(shown))


def _measured(name: str, shown: Sequence[Look], decoding: Any = None) -> Measures:
    from mmalign.models.vlm import load_vlm
    from mmalign.training.config import ModelConfig

    components = load_vlm(ModelConfig(name=name))
    return measure(components.model, components.processor, shown, decoding=decoding)


def main() -> None:
    """Run what is missing, then write down everything there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="*", choices=ALL, default=ALL)
    parser.add_argument("--work", type=Path, default=Path("runs/vlm-evidence"))
    parser.add_argument("--small", action="store_true", help="Few rows and steps, in WORK-small; no record is written.")
    arguments = parser.parse_args()
    if arguments.small:
        arguments.work = arguments.work.with_name(f"{arguments.work.name}-small")
    for seed in arguments.seeds:
        for arm in arguments.arms:
            run_arm(arm, seed, arguments.work, small=arguments.small)
    files = sorted(arguments.work.glob("seed*/*.json"))
    records = [record for record in map(read, files) if "arm" in record]
    records.sort(key=lambda record: (ALL.index(record["arm"]), record["seed"]))
    if not records:
        raise SystemExit(f"{arguments.work} holds no measured arm yet; name some with --arms")
    if not arguments.small:
        write(RECORD, json.dumps(records, indent=1) + "\n")
        write(RECORD.with_suffix(".md"), render(records))
    print("small: the numbers mean nothing" if arguments.small else "", render(records), sep="\n")


if __name__ == "__main__":
    main()
