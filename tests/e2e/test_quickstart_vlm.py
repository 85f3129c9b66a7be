"""The quickstart for vision-language models at a small size, on the shipped weights."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

from mmalign.playground.vlm_pairs import VLMPairSettings
from mmalign.quickstart_vlm import quickstart_vlm
from mmalign.training.loading import load_config

SMALL = ["training.steps=2", "training.warmup_steps=0", "training.checkpoint_every=2", "training.batch_size=8",
         "evaluation.every=2"]  # fmt: skip


def test_it_writes_pairs_weights_evaluation_and_report(tmp_path: Path) -> None:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        done = quickstart_vlm(
            seed=3, out=tmp_path, pairs_wanted=VLMPairSettings(rows=40, seed=3), pictures=8, overrides=SMALL
        )
    assert (tmp_path / "vlm_pairs_seed3.parquet").exists()
    assert done.folder == tmp_path / "vlm_visual_seed3"
    evaluation = json.loads((done.folder / "evaluation.json").read_text())
    assert evaluation["kind"] == "vlm_playground"
    assert evaluation["n_pictures"] == 8
    assert done.report is not None
    assert done.report.is_file()
    assert re.search(r"hallucination rate \d\.\d+ -> \d\.\d+ \(-?\d\.\d+ \[", text.getvalue())
    commands = [line for line in text.getvalue().split("try next:")[1].splitlines() if line.strip()]
    assert len(commands) == 2
    for command in commands:
        source, *overrides = shlex.split(command.strip().removeprefix("mmalign train "))
        load_config(source, overrides)
