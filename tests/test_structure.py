"""The architecture and the house style, held by reading every file: arrows, sizes, errors, what must never appear."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmalign

ROOT = Path(__file__).parents[1]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 80
# Path (or path::function) -> why it may be longer. Split before adding here.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
# Path -> why it may catch everything without raising.
CATCHES_EVERYTHING = {"mmalign/cli/__main__.py": "the outermost frame: every error becomes a message and an exit code"}
ABOVE = {"recipes", "app", "reward_models", "benchmarks", "tests"}  # they import mmalign, never the other way round
# Part of mmalign -> the other parts it may import (mmalign.training.config is the schema, open to all).
ARROWS = {
    "types": set(),
    "losses": {"types"},
    "references": {"types"},
    "adapters": {"references", "types"},
    "caches": set(),
    "data": {"types"},
    "vlm_data": {"corruptions", "data", "types"},
    "corruptions": {"pictures", "types"},
    "negatives": {"corruptions", "data", "models", "playground", "references", "rewards", "types", "vlm_data"},
    "models": {"types"},
    "rewards": {"caches", "data", "playground", "types"},
    "evaluation": {"playground", "rewards"},
    "report": {"evaluation"},
    "arena": {"data", "types", "vlm_data"},
    "labelling": {
        "data",
        "evaluation",
        "report",
        "rewards",
        "training.processes",
        "training.strict_yaml",
        "types",
    },
}
MODALITY = {"diffusers", "transformers", "mmalign.models", "mmalign.adapters", "mmalign.data", "mmalign.playground"}
PICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
PRIVATE_PATH = re.compile(r"(?<![\w.])/(work|tmp|home|root|Users|mnt|scratch)/\w")
REGISTRY_HOST = re.compile(
    r"pypi\.org|pythonhosted\.org|--(extra-)?index-url|npmjs\.(org|com)|registry\.[a-z]+\.[a-z]+"
)


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: which files belong to the project is not known")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in ``tree``, inside functions too; ``from a import b`` gives a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


PACKAGE = sources("mmalign")
EACH = pytest.mark.parametrize("path", PACKAGE, ids=name_of)


def test_the_files_are_found() -> None:
    assert ROOT / "mmalign" / "training" / "trainer.py" in PACKAGE
    assert len(PACKAGE) > 50


@EACH
def test_the_package_imports_nothing_that_is_built_on_it(path: Path) -> None:
    assert [module for module in imports(tree_of(path)) if within(module, ABOVE)] == []


@pytest.mark.parametrize("part", sorted(ARROWS))
def test_arrows_between_the_parts(part: str) -> None:
    files = [path for path in PACKAGE if path.relative_to(ROOT / "mmalign").parts[0] in (part, f"{part}.py")]
    assert files
    allowed = {f"mmalign.{name}" for name in ARROWS[part] | {part}} | {"mmalign.training.config"}
    for path in files:
        own = [module for module in imports(tree_of(path)) if within(module, {"mmalign"})]
        # `from mmalign import losses` gives mmalign and mmalign.losses: the second is what counts.
        wrong = [
            module for module in own if module not in ("mmalign", "mmalign.training") and not within(module, allowed)
        ]
        assert wrong == [], f"{name_of(path)} may import {sorted(allowed)}"


def test_the_trainer_knows_no_modality() -> None:
    folder = ROOT / "mmalign" / "training"
    for name in ("trainer", "steps", "state", "held_out", "rows", "order", "task", "checkpoint"):
        for module in imports(tree_of(folder / f"{name}.py")):
            assert not within(module, MODALITY), f"{name}.py imports {module}"
            assert not module.startswith("mmalign.training.image"), f"{name}.py imports {module}"


@pytest.mark.parametrize("path", sources("mmalign", "app", "reward_models", "benchmarks"), ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE_LINES or name_of(path) in LONG_FILES, f"{lines} lines"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES or f"{name_of(path)}::{node.name}" in LONG_FUNCTIONS, (
                f"{node.name}: {length} lines"
            )


def test_exceptions_from_the_limits_are_still_needed() -> None:
    for name in (*LONG_FILES, *CATCHES_EVERYTHING, *(entry.split("::")[0] for entry in LONG_FUNCTIONS)):
        assert (ROOT / name).is_file(), f"{name} is gone; take it off the list"


@EACH
def test_no_error_is_swallowed(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        assert node.type is not None, f"line {node.lineno}: name the exception"
        caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
        raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
        if caught & {"Exception", "BaseException"} and not raises:
            assert name_of(path) in CATCHES_EVERYTHING, f"line {node.lineno}: catches everything and goes on"


@EACH
def test_no_pickle_and_no_hidden_nan(path: Path) -> None:
    tree = tree_of(path)
    assert [module for module in imports(tree) if within(module, PICKLERS)] == []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert not called.endswith("nan_to_num"), f"line {node.lineno}: a NaN is an error, not a zero"
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called == "torch.load":
            assert options.get("weights_only") == "True", f"line {node.lineno}: torch.load runs code it finds"
        assert options.get("allow_pickle", "False") == "False", f"line {node.lineno}"


@EACH
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))


def test_no_private_path_and_no_registry_host() -> None:
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), start=1):
            if PRIVATE_PATH.search(line) or REGISTRY_HOST.search(line):
                found.append(f"{name_of(path)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_importing_the_package_is_cheap() -> None:
    """A tenth of a second at most: nothing but the version is loaded."""
    code = (
        "import sys, time\nbefore, start = set(sys.modules), time.perf_counter()\nimport mmalign\n"
        "print(time.perf_counter() - start, mmalign.__version__, *sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, version, *loaded = done.stdout.split()
    assert float(seconds) < 0.1
    assert version == mmalign.__version__
    assert loaded == ["mmalign"]
