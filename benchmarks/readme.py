"""The generated parts of README.md: ``python -m benchmarks.readme``.

Between ``<!-- methods:begin -->`` and ``<!-- methods:end -->``: one row per key of ``LOSSES``, from its docstring and
signature. Between ``<!-- evidence:begin -->`` and ``<!-- evidence:end -->``: the pooled win rates of ``make evidence``
and links to everything in ``benchmarks/results``, or "not yet measured" where a file does not exist. Between
``<!-- speed:begin -->`` and ``<!-- speed:end -->``: ratios against published code. A test holds README.md to what this
module renders.
"""

import json
import re
from pathlib import Path

from benchmarks.evidence_arms import SUITES, results_file
from benchmarks.evidence_tables import compare
from benchmarks.readme_speed import speed
from mmalign.losses import LOSSES, LossDescription, describe

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results"
# Suite of the evidence, and the arm with the model it is compared with, in the methods' table.
ARMS = {
    "dpo": ("core", "base", "dpo"),
    "mapo": ("core", "base", "mapo"),
    "sft": ("core", "base", "sft"),
    "robust_dpo": ("core", "dpo, 30 % flipped", "robust_dpo, 30 % flipped"),
    "soft_dpo": ("soft", "base", "soft_dpo"),
    "smoothed_dpo": ("soft", "base", "smoothed_dpo"),
    "kto": ("rows", "base", "kto"),
    "plackett_luce": ("rows", "base", "plackett_luce"),
    "lambda_rank": ("rows", "base", "lambda_rank"),
}
# Sources that have no arXiv number in the docstring.
SOURCES = {
    "sft": "maximum likelihood",
    "listnet": "Cao et al., ICML 2007",
    "soft_dpo": "DPO with soft labels",
    "dspo": "huaishengzhu/DSPO",
}
# Tests that compare with published code, beside the equation test that every loss has.
IN_TRL = ("robust_dpo", "ipo", "hinge", "f_dpo", "exo", "nca", "bco_pair", "sppo", "apo_zero", "apo_down", "discopop")
PARITY = {
    "dpo": "tests/parity/test_diffusion_dpo_step.py",
    "mapo": "tests/parity/test_mapo_step.py",
    **dict.fromkeys(("dspo", "triple", "pro"), "tests/parity/test_method_repositories.py"),
    **dict.fromkeys((*IN_TRL, "aot", "aot_unpaired"), "tests/parity/test_trl_losses.py"),
}
# What else is recorded: a title and the file of its table.
RECORDED = (
    ("Quickstart: time, memory, win rate", "quickstart.md"),
    ("VLM quickstart: hallucination rate by seed", "vlm_quickstart.md"),
    ("VLM objectives and corruptions on the same rows", "vlm_evidence.md"),
    ("VLM DPO against TRL: speed and memory", "vlm_speed.md"),
    ("The same with a vocabulary as small a part of the model as LLaVA-7B's", "vlm_speed_56m_deep.md"),
    ("The same at tiny size", "vlm_speed_tiny.md"),
    ("SDXL DPO against the script of diffusers: speed and memory", "diffusion_diffusers.md"),
    ("The same with our side compiled", "diffusion_diffusers_compiled.md"),
    ("SDXL MaPO against its script", "diffusion_mapo.md"),
    ("The same with our side compiled", "diffusion_mapo_compiled.md"),
    ("SDXL DPO of all weights against Salesforce's script", "diffusion_salesforce.md"),
    ("Where the time of a step goes", "profile.md"),
    ("Memory: predicted by the doctor, and held", "memory.md"),
    ("A thousand to a million pairs", "scale.md"),
    ("Real photographs through every option of the readers", "photographs.md"),
    ("The disk cache: time and memory saved", "cache.md"),
    ("Leaderboard on a million votes", "arena.md"),
    ("Reward models: pictures per second", "rewards.md"),
    ("Reward models: objectives under label noise, users who disagree, circles", "rewards_evidence.md"),
    ("A narrow reward followed too far, and the alarm", "over_optimisation.md"),
)


def render(text: str, results: Path = RESULTS) -> str:
    """README text with its generated blocks as they should be."""
    text = _replaced(text, "methods", method_table(results))
    text = _replaced(text, "speed", speed(results))
    return _replaced(text, "evidence", evidence(results))


def method_table(results: Path) -> str:
    """Markdown, one row per loss."""
    lines = [
        "| loss | formula | rows | reference | source | tests | evidence |",
        "|---|---|---|---|---|---|---|",
        *(_row(describe(name), results) for name in LOSSES),
    ]
    return "\n".join(lines)


def evidence(results: Path) -> str:
    """What each suite found, pooled over seeds, and where the whole tables are."""
    lines = ["| suite | model | against | seeds | win rate [95 %] |", "|---|---|---|---|---|"]
    for name, suite in SUITES.items():
        path = results_file(name, results)
        scores = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        title = f"[{suite.title.partition(':')[0]}](benchmarks/results/{path.with_suffix('.md').name})"
        if scores is None:
            lines.append(f"| {suite.title.partition(':')[0]} | not yet measured | | | |")
            continue
        for against, arm in suite.headline or suite.comparisons:
            found = compare(scores, against, arm, suite.metric)
            if found is not None:
                lines.append(f"| {title} | {arm} | {against} | {len(found['per_seed'])} | {found['win_rate']} |")
                title = ""
    recorded = [
        f"[{title}](benchmarks/results/{name})" if (results / name).exists() else f"{title}: not yet measured"
        for title, name in RECORDED
    ]
    return "\n".join([*lines, "", "Also recorded:", "", *(f"- {each}" for each in recorded)])


def _row(loss: LossDescription, results: Path) -> str:
    formula = loss.formula.replace("``", "").rstrip(".").replace("|", r"\|")
    rows = "k candidates" if "candidates" in loss.branch_keys else "single" if "sample" in loss.branch_keys else "pair"
    cells = (
        f"`{loss.name}`",
        f"`{formula}`",
        rows,
        "yes" if loss.needs_reference else "no",
        _source(loss),
        _tests(loss.name),
        _evidence(loss.name, results),
    )
    return f"| {' | '.join(cells)} |"


def _source(loss: LossDescription) -> str:
    if loss.name in SOURCES:
        return SOURCES[loss.name]
    found = dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{5})", loss.formula + loss.details))
    if not found:
        raise SystemExit(f"{loss.name} names no arXiv number in its docstring; add it there, or to SOURCES")
    return ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in found)


def _tests(name: str) -> str:
    tables = sorted((ROOT / "tests" / "losses").glob("loss_table*.py"))
    row = next(path for path in tables if f'"{name}": ' in path.read_text(encoding="utf-8"))
    links = [f"[equation]({row.relative_to(ROOT)})"]
    if name in PARITY:
        links.append(f"[published code]({PARITY[name]})")
    return ", ".join(links)


def _evidence(name: str, results: Path) -> str:
    suite, against, arm = ARMS.get(name, ("core", "", ""))
    path = results_file(suite, results)
    if name in ARMS and path.exists():
        found = compare(json.loads(path.read_text(encoding="utf-8")), against, arm)
        if found is not None:
            return f"playground: wins {found['win_rate']} against {against}, {len(found['per_seed'])} seeds"
    return "equation test"


def _replaced(text: str, block: str, body: str) -> str:
    begin, end = f"<!-- {block}:begin -->", f"<!-- {block}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"README.md needs {begin} and {end}, once each")
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{body}\n{end}{tail}"


def main() -> None:
    """Rewrite README.md."""
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
