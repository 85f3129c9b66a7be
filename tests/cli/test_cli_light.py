"""Commands that load no model, as a user meets them: in a process of their own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmalign
from mmalign.training.loading import load_config
from mmalign.training.recipe_files import recipe_names, recipe_text
from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]


def mmalign_process(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "mmalign.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=folder or ROOT,
        env=environment,
        check=False,
    )


def test_help_names_every_command() -> None:
    done = mmalign_process("--help")
    assert done.returncode == 0
    for command in ("quickstart", "train", "generate", "evaluate", "losses", "recipes"):
        assert f" {command} " in done.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["evaluate", "images", "--help"], ["--version"]]
)
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from mmalign.cli.__main__ import main\n"
        f"assert main({arguments!r}) == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'accelerate', 'numpy', 'PIL', 'pyarrow'}\n"
        "sys.exit(f'imported {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_version() -> None:
    assert mmalign_process("--version").stdout == f"mmalign {mmalign.__version__}\n"


def test_several_mistakes_in_one_message_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "model: {name: nobody/nothing/x}\n"
        "data: {source: pickapic, path: nowhere.parquet, ties: sft}\n"
        "objective: [{loss: dpoo}]\n"
        "training: {steps: 10, learning_rat: 1e-5}\n"
        "output: out\n"
    )
    done = mmalign_process("train", "run.yaml", "training.batch_size=0", folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: run.yaml: 6 mistakes, nothing was loaded\n")
    for words in (
        "training.batch_size = 0\n      must be greater than or equal to 1",
        "data.ties = 'sft'",
        "Did you mean 'learning_rate'?",
        "dpoo",
        "there is no such file or folder in",
        "not a hub id",
    ):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml"]


def test_unknown_recipe_and_missing_file(tmp_path: Path) -> None:
    done = mmalign_process("train", "playground/dpoo", folder=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'playground/dpo'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_command_and_no_command() -> None:
    assert mmalign_process("trian").returncode == 2
    assert "Usage" in mmalign_process().stdout


def test_losses_lists_what_every_loss_asks_for(run: Run) -> None:
    from mmalign.losses import LOSSES

    line = run("losses")
    assert line.code == 0
    for name in LOSSES:
        assert f"\n{name} " in line.out
    assert "chosen_logratio" in line.out
    assert "beta=0.1" in line.out


def test_one_loss_in_full(run: Run) -> None:
    line = run("losses", "dpo")
    assert line.out.startswith("dpo(chosen_logratio, rejected_logratio, *, beta, label_smoothing=0.0)\n")
    assert "arXiv 2305.18290" in line.out
    assert "needs a reference: yes" in line.out
    assert "batch depend" not in line.out
    sft = run("losses", "sft").out
    assert sft.startswith("sft(chosen_mean_logp)\n")
    assert "branches: chosen\nneeds a reference: no\n" in sft
    assert "rows of a batch depend on each other" in run("losses", "aot").out
    line = run("losses", "mappo")
    assert line.code == 2
    assert "Did you mean 'mapo'?" in line.err


def test_recipes_list(run: Run) -> None:
    out = run("recipes", "list").out
    for name in recipe_names():
        assert f"{name} " in out
    assert "preference tuning without a reference." in out


def test_recipes_copy(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = run("recipes", "copy", "sdxl/dpo_lora")
    assert line.out == "sdxl_dpo_lora.yaml\ntrain it with: mmalign train sdxl_dpo_lora.yaml\n"
    assert (tmp_path / "sdxl_dpo_lora.yaml").read_text() == recipe_text("sdxl/dpo_lora")
    assert run("recipes", "copy", "sdxl/dpo_lora", "mine/first.yaml").code == 0
    assert load_config("mine/first.yaml", check_files=False).training.steps == 2000
    again = run("recipes", "copy", "sdxl/dpo_lora")
    assert again.code == 2
    assert "is not overwritten" in again.err
    unknown = run("recipes", "copy", "sdxl_dpo_lora")
    assert unknown.code == 2
    assert "Did you mean 'sdxl/dpo_lora'?" in unknown.err


def test_quickstart_options(run: Run, replace_module: Callable[[str, Any], None], tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []

    def quickstart(**options: Any) -> None:
        calls.append(options)

    replace_module("mmalign.quickstart", quickstart)
    assert run("quickstart").code == 0
    assert run("quickstart", "--task", "image", "--method", "mapo", "--seed", "3", "--out", tmp_path).code == 0
    assert calls == [
        {"method": "dpo", "seed": 0, "out": Path("runs/quickstart")},
        {"method": "mapo", "seed": 3, "out": tmp_path},
    ]
    calls.clear()

    def quickstart_vlm(**options: Any) -> None:
        calls.append(options)

    replace_module("mmalign.quickstart_vlm", quickstart_vlm)
    assert run("quickstart", "--task", "vlm", "--seed", "3", "--out", tmp_path).code == 0
    assert calls == [{"seed": 3, "out": tmp_path}]


def test_quickstart_refuses_what_it_cannot_do(run: Run, replace_module: Callable[[str, Any], None]) -> None:
    def quickstart(**options: Any) -> None:
        raise AssertionError("must not be reached")

    replace_module("mmalign.quickstart", quickstart)
    vlm = run("quickstart", "--task", "vlm", "--method", "mapo")
    assert vlm.code == 2
    assert "--method dpo" in vlm.err
    wrong = run("quickstart", "--method", "ppo")
    assert wrong.code == 2
    assert "dpo" in wrong.err


def test_a_bug_is_named_as_one(run: Run, replace_module: Callable[[str, Any], None]) -> None:
    def quickstart(**options: Any) -> None:
        raise KeyError("latents")

    replace_module("mmalign.quickstart", quickstart)
    line = run("quickstart")
    assert line.code == 1
    assert line.err == "error: KeyError: 'latents' (run again with --debug to see where)\n"


def test_an_interrupt_is_no_error_report(run: Run, replace_module: Callable[[str, Any], None]) -> None:
    def quickstart(**options: Any) -> None:
        raise KeyboardInterrupt

    replace_module("mmalign.quickstart", quickstart)
    line = run("quickstart")
    assert line.code != 0
    assert "Traceback" not in line.err
