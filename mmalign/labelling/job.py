"""One labelling: what is scored, by which rewards, where; shared by processes, and turned into a file of rows.

Everything in a :class:`Job` is plain, so that other processes, or Ray's actors, can open the same pictures and models
for themselves. They share nothing but the folder of records, into which each writes the chunks it has scored.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch.distributed

from mmalign.data import RowTable, TableReport, open_table, write_canonical, write_pickapic_table
from mmalign.data.table import hashed
from mmalign.evaluation.combined import CombinedReward
from mmalign.labelling.generations import Generations, from_folders, from_table
from mmalign.labelling.making import LabelledRows, Making, make_rows
from mmalign.labelling.rewards import open_reward
from mmalign.labelling.scoring import ScoreRecords, score_chunks, scoring_key
from mmalign.rewards import RewardModel
from mmalign.training.config import DataConfig
from mmalign.training.processes import join_processes, processes_started
from mmalign.types import PreferencePair, RowKind

_PATIENCE = timedelta(days=7)
KINDS: Mapping[str, RowKind] = {"pairs": "pair", "soft": "pair", "rankings": "ranking", "unary": "unary"}


@dataclass(frozen=True)
class Job:
    """``folders`` of mmalign generate, or ``data``, scored by ``rewards`` (names, YAML files) into ``records``."""

    rewards: tuple[str, ...]
    records: Path
    folders: tuple[Path, ...] = ()
    data: DataConfig | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 16

    def open_pictures(self) -> Generations:
        """What is to be scored, grouped by prompt."""
        return from_folders(self.folders) if self.data is None else from_table(open_table(self.data))

    def open_rewards(self) -> list[RewardModel]:
        """The models, loaded. ValueError for a combination whose scores depend on what else is in the batch."""
        opened = [open_reward(name, **self.options) for name in self.rewards]
        for reward in opened:
            moving = isinstance(reward, CombinedReward) and {one.transform for one in reward.config.rewards}
            if moving and moving & {"running_z", "per_prompt_z"}:
                raise ValueError(
                    f"{reward.name}: {', '.join(sorted(moving & {'running_z', 'per_prompt_z'}))} depends on the "
                    "pictures scored together, so labels would; use frozen_z, quantile or log_sigmoid"
                )
        return opened


@dataclass(frozen=True)
class OpenJob:
    """A job with its pictures indexed, its rewards loaded and its records found."""

    job: Job
    pictures: Generations
    rewards: list[RewardModel]
    records: ScoreRecords

    @classmethod
    def open(cls, job: Job) -> "OpenJob":
        """Open everything; records of another job are an error."""
        pictures, rewards = job.open_pictures(), job.open_rewards()
        key = scoring_key(pictures.fingerprint, rewards, options=job.options)
        records = ScoreRecords(job.records, key, len(pictures.groups))
        for chunk in records.chunks:
            if records.has(chunk):
                records.read(chunk)
                break
        return cls(job, pictures, rewards, records)

    @property
    def versions(self) -> dict[str, str]:
        """Reward name -> version."""
        return {reward.name: reward.version for reward in self.rewards}

    def score(self, chunks: "list[int] | range", progress: Callable[[int], None] | None = None) -> None:
        """Score those of ``chunks`` that are not recorded."""
        score_chunks(
            self.pictures.groups, self.rewards, self.records, chunks, batch_size=self.job.batch_size, progress=progress
        )

    def rows_done(self) -> int:
        """Rows that any process has scored so far."""
        return sum(len(self.records.rows_of(chunk)) for chunk in self.records.chunks if self.records.has(chunk))


def score_shared(opened: OpenJob, progress: Callable[[int], None] | None = None) -> bool:
    """Score this process's share of the chunks, wait for the others, and tell whether this is the main process.

    Process i of n takes chunks i, i + n, ... ``progress`` is called with the rows that all of them have scored so far.
    """
    total = processes_started()
    told = None if progress is None else (lambda _: progress(opened.rows_done()))
    if total == 1:
        opened.score(opened.records.chunks, told)
        return True
    state = join_processes()
    opened.score(opened.records.chunks[state.process_index :: total], told)
    # A group of its own, for the processes may finish hours apart, which the default group takes for a failure.
    group: Any = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    torch.distributed.barrier(group)
    torch.distributed.destroy_process_group(group)
    return state.is_main_process


def labelled_table(opened: OpenJob, making: Making) -> RowTable:
    """The rows that ``making`` makes of the recorded scores, as a table like any other."""
    made = make_rows(opened.pictures.groups, opened.records.all(), opened.versions, making)
    soft = sum(isinstance(row, PreferencePair) and 0.5 < row.preference < 1 for row in made.rows)
    named = ", ".join(f"{reward.name} {reward.version}" for reward in opened.rewards)
    report = TableReport(
        source=f"labels of {named}",
        files=(opened.pictures.described.split(":")[0],),
        rows=len(made.rows),
        kept=len(made.rows),
        ties=sum(isinstance(row, PreferencePair) and row.is_tie for row in made.rows),
        ties_policy="soft",
        soft=soft,
        notes=tuple(made.notes),
    )
    storage, kind = LabelledRows(opened.pictures.groups, made), KINDS[making.form]
    return RowTable(storage, range(len(storage)), report, hashed(opened.records.key, making), kind)


def write_labels(
    table: RowTable, out: Path, opened: OpenJob, making: Making, to: Literal["canonical", "pickapic"]
) -> tuple[str, ...]:
    """Write ``table`` to the file ``out`` and remove the records. Gives the names of extras that were not kept."""
    left_out: tuple[str, ...] = ()
    if to == "pickapic":
        _, left_out = write_pickapic_table(table, out)
    else:
        settings = {"form": making.form, **{name: value for name, value in vars(making).items() if value is not None}}
        write_canonical(table, out, provenance={"labelled_by": opened.versions, "labelling": settings})
    shutil.rmtree(opened.job.records)
    return left_out
