"""One run: check, plan, load, train, report."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from mmalign.report import write_report
from mmalign.training.config import Config
from mmalign.training.failures import out_of_memory_explained
from mmalign.training.guards import GuardStop
from mmalign.training.image_cache import checks_folder
from mmalign.training.image_data import (
    ImageData,
    check_same_data,
    open_data,
    open_head,
    write_data_report,
)
from mmalign.training.image_model import checked_objective
from mmalign.training.images import ImageTask
from mmalign.training.plan import Plan, make_plan, shape_of_model
from mmalign.training.plug_ins import plug_in
from mmalign.training.processes import main_process_first, processes_started
from mmalign.training.strategy import check_packages, check_strategy
from mmalign.training.task import Task
from mmalign.training.trainer import Trainer


@dataclass(frozen=True)
class RunResult:
    """``folder``: everything the run wrote; ``aligned`` in it is the trained model. ``report``: its HTML file."""

    folder: Path
    report: Path | None
    stopped_early: bool


class RunOfFamily(Protocol):
    """One family's part of a run. Making it checks what needs no data and no weights."""

    def head(self) -> Any:
        """The rows without a look at every picture: for a plan, not for training."""
        ...

    def open(self) -> Any:
        """The rows, with ``fingerprint``, ``report`` and ``tables``."""
        ...

    def plan(self, data: Any, processes: int) -> Any:
        """What will be done, to print."""
        ...

    def task(self, data: Any) -> Task:
        """Load the weights."""
        ...


class ImageRun:
    """A run of an image generator."""

    def __init__(self, config: Config) -> None:
        self.config, self.objective = config, checked_objective(config)
        self.shape = shape_of_model(config)

    def head(self) -> ImageData:
        """Rows of which only the first is decoded."""
        return open_head(self.config, self.objective)

    def open(self) -> ImageData:
        """Rows whose pictures were decoded as ``data.verify`` says."""
        return open_data(self.config, self.objective, record=checks_folder(self.config))

    def plan(self, data: ImageData, processes: int) -> Plan:
        """The table of ``--dry-run``."""
        return make_plan(self.config, data, self.shape, processes)

    def task(self, data: ImageData) -> ImageTask:
        """The pipeline, ready to be trained."""
        return ImageTask.from_config(self.config, data)


def _vlm_run(config: Config) -> RunOfFamily:
    from mmalign.training.vlm_run import VLMRun

    return VLMRun(config)


def _reward_run(config: Config) -> RunOfFamily:
    return plug_in("reward").run(config)


FAMILIES: dict[str, Callable[[Config], RunOfFamily]] = {"image": ImageRun, "vlm": _vlm_run, "reward": _reward_run}


def train(config: Config, *, resume: bool = False, dry_run: bool = False, command: str = "") -> RunResult:
    """Train as ``config`` says, write everything to ``config.output``; ``dry_run`` shows the plan and writes nothing.

    Everything that can be wrong is looked at before the weights are loaded: objective, timesteps, optimizer, every
    picture, the shape of the model. ``command``: how the run was started, for its records.
    """
    if config.training.rounds > 1 and not dry_run:
        return _train_rounds(config, resume=resume, command=command)
    folder, console = Path(config.output), Console(quiet=not _is_main())
    family = FAMILIES[config.family](config)
    check_packages(config)
    check_strategy(config)
    if dry_run:
        console.print(family.plan(family.head(), processes_started()))
        return RunResult(folder, None, stopped_early=False)
    data = _open_data(family, folder, resume=resume)
    console.print(family.plan(data, processes_started()))
    with out_of_memory_explained(config):
        task = family.task(data)
        try:
            result = Trainer(config, task, folder=folder, command=command, console=console).fit(resume=resume)
        except GuardStop:
            if _is_main():
                write_report(folder)
            raise
    report = write_report(folder) if _is_main() else None
    return RunResult(folder, report, result.stopped_early)


def _train_rounds(config: Config, *, resume: bool, command: str) -> RunResult:
    from mmalign.training.rounds import train_rounds

    def run(of_round: Config, resume: bool) -> RunResult:
        return train(of_round, resume=resume, command=command)

    results = train_rounds(config, run, resume=resume)
    report = results[-1].report if results else None
    return RunResult(Path(config.output), report, any(result.stopped_early for result in results))


def _open_data(family: RunOfFamily, folder: Path, *, resume: bool) -> Any:
    with main_process_first():  # it records what it found, which the others then read
        data = family.open()
    if resume:
        check_same_data(folder, data)
    if _is_main():
        write_data_report(folder, data)
    return data


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"
