"""README and CONTRIBUTING are true: tables generated, examples run, commands parse, recipes and files exist."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from benchmarks.evidence_arms import SUITES
from benchmarks.readme import README, RECORDED, render
from benchmarks.readme_speed import WORK
from mmalign.cli.__main__ import app
from mmalign.losses import LOSSES, Objective
from mmalign.training.loading import load_config
from mmalign.training.recipe_files import recipe_names

ROOT = Path(__file__).parents[1]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = {page.name: page.read_text(encoding="utf-8") for page in (README, CONTRIBUTING)}
EMPTY = "".join(f"<!-- {block}:begin --><!-- {block}:end -->" for block in ("speed", "methods", "evidence"))
WEIGHTS = "mmalign/playground/weights/"
# Named in running text, without what they require.
NAMED_ONLY = (["train"], ["generate"], ["evaluate", "images"], ["data", "convert"])


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> Iterator[str]:
    """Every mmalign command line that is shown, in a block or in running text."""
    for text in PAGES.values():
        lines = [line.split("  #")[0].strip() for block in blocks(text, "bash") for line in block.splitlines()]
        lines += re.findall(r"`(mmalign [^`]+)`", text)
        yield from (line for line in lines if line.startswith("mmalign "))


COMMANDS = sorted(set(commands()))


def leaves(command: Any) -> Iterator[Any]:
    if hasattr(command, "commands"):
        for inner in command.commands.values():
            yield from leaves(inner)
    else:
        yield command


def test_readme_is_up_to_date() -> None:
    assert PAGES["README.md"] == render(PAGES["README.md"]), "run: python -m benchmarks.readme"


def test_every_loss_has_one_row() -> None:
    table = PAGES["README.md"].split("<!-- methods:begin -->")[1].split("<!-- methods:end -->")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == list(LOSSES)


def test_evidence_is_read_from_the_scores(tmp_path: Path) -> None:
    base, better = ({"share": [[value]] * 2, "all_correct": [[value]] * 2} for value in (0.5, 1.0))
    scores = {"seeds": {"0": {"base": base, "dpo": better}}}
    (tmp_path / "evidence.json").write_text(json.dumps(scores), encoding="utf-8")
    (tmp_path / "quickstart.md").write_text("recorded", encoding="utf-8")
    runs = [
        {"side": side, "repetition": 0, "step_cpu_seconds": value, "peak_rss_mib": 2 * value}
        for side, value in (("peer", 3.0), ("cached", 1.5))
    ]
    (tmp_path / "diffusion_mapo.json").write_text(json.dumps({"runs": runs}), encoding="utf-8")
    text = render(EMPTY.replace("<!-- evidence:end", "STALE<!-- evidence:end"), tmp_path)
    assert "](benchmarks/results/evidence.md) | dpo | base | 1 | 1.000" in text
    assert "STALE" not in text
    assert "latents and text cached | 2.00 | 2.00 |" in text
    assert text.count("not yet measured") == len(SUITES) - 1 + len(RECORDED) - 1 + len(WORK) - 1


def test_evidence_column_reads_the_scores(tmp_path: Path) -> None:
    scores = {"share": [[0.5], [0.5]], "all_correct": [[0.0], [0.0]]}
    better = {"share": [[1.0], [1.0]], "all_correct": [[1.0], [1.0]]}
    results = {"seeds": {"0": {"base": scores, "dpo": better}}}
    (tmp_path / "evidence.json").write_text(json.dumps(results), encoding="utf-8")
    text = render(EMPTY, tmp_path)
    row = next(line for line in text.splitlines() if line.startswith("| `dpo` "))
    assert "playground: wins 1.000" in row
    assert sum("playground: wins" in line for line in text.splitlines()) == 1


def test_the_research_example_is_the_tested_file() -> None:
    example = (ROOT / "tests" / "research_example.py").read_text(encoding="utf-8")
    assert example in blocks(PAGES["README.md"], "python")


def test_the_other_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    examples = blocks(PAGES["README.md"], "python")
    assert len(examples) == 2
    for code in examples:
        exec(compile(code, "README.md", "exec"), {})
    assert "tensor(" in capsys.readouterr().out


def test_objectives_shown_are_valid() -> None:
    shown = [yaml.safe_load(block) for block in blocks(PAGES["README.md"], "yaml")]
    assert shown
    for block in shown:
        Objective(block["objective"])


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_parses(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = shlex.split(line)[1:]
    monkeypatch.chdir(tmp_path)
    for option, argument in zip(["", *arguments], arguments, strict=False):
        if argument.endswith(".txt"):
            Path(argument).write_text("a prompt\n", encoding="utf-8")
        if option in ("--images", "--pictures"):
            Path(argument).mkdir(parents=True)
    command = typer.main.get_command(app)
    called = []
    for leaf in leaves(command):
        monkeypatch.setattr(leaf, "callback", lambda **values: called.append(values))
    if arguments in NAMED_ONLY:
        assert command.main(args=[*arguments, "--help"], prog_name="mmalign", standalone_mode=False) == 0
        return
    command.main(args=arguments, prog_name="mmalign", standalone_mode=False)
    assert len(called) == 1


TRAINED = [shlex.split(line)[2:] for line in COMMANDS if line.startswith("mmalign train ")]


@pytest.mark.parametrize("arguments", TRAINED, ids=" ".join)
def test_every_recipe_and_override_is_valid(arguments: list[str]) -> None:
    recipe, *rest = arguments
    load_config(recipe, [text for text in rest if not text.startswith("--")], check_files=False)


def test_recipes_named_exist() -> None:
    copied = [shlex.split(line)[3] for line in COMMANDS if line.startswith("mmalign recipes copy ")]
    assert set(copied) <= set(recipe_names())
    for text in PAGES.values():
        named = set(re.findall(r"`((?:sdxl|sd15|sd3|playground)/\w+)`", text))
        assert named <= set(recipe_names())


def paths(text: str) -> Iterator[str]:
    """Relative link targets, and files and folders of the project in backticks."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "#")):
            yield target.partition("#")[0]
    for quoted in re.findall(r"`([\w./-]+)`", text):
        if quoted.split("/")[0] in ("mmalign", "tests", "benchmarks", "recipes", "docs") and "/" in quoted:
            yield quoted


@pytest.mark.parametrize("page", PAGES)
def test_every_file_named_exists(page: str) -> None:
    docs = ROOT / "docs"
    has_docs = docs.is_dir() and any(docs.iterdir())
    named = set(paths(PAGES[page]))
    assert len(named) > 5
    # The pictures of a report, and the weights, are made by long runs: required as soon as any of them is there.
    wanted = {name for name in named if has_docs or not name.startswith("docs/")}
    if not (ROOT / WEIGHTS).is_dir():
        wanted = {name for name in wanted if not name.startswith(WEIGHTS)}
    assert sorted(name for name in wanted if not (ROOT / name).exists()) == []


@pytest.mark.parametrize("page", PAGES)
def test_headings_linked_to_exist(page: str) -> None:
    for target, heading in re.findall(r"\]\(([\w.]*)#([\w-]+)\)", PAGES[page]):
        text = PAGES[target or page]
        titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
        assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
