"""The rows of one run of a vision-language model: read, checked against the objective, split, and told."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmalign.data import RowTable, split_by_prompt
from mmalign.data.table import NAMED, count
from mmalign.losses import Objective
from mmalign.training.config import Config
from mmalign.training.task import HELD_OUT, TRAIN
from mmalign.training.vlm_branches import GOLD, NO_PICTURES, branches_of, told_lacking
from mmalign.types import VLMPair
from mmalign.vlm_data import open_source, open_table

PICTURE_CHECK = "pictures.json"
HEAD = 100


@dataclass(frozen=True)
class VLMData:
    """``tables``: split -> rows. ``report``: what became of the source's rows, as text."""

    tables: Mapping[str, RowTable[VLMPair]]
    report: str

    @property
    def fingerprint(self) -> str:
        """A hash of the rows of every split, to prove on resume that they are still the same."""
        return "-".join(table.fingerprint[:16] for table in self.tables.values())

    def size(self, split: str) -> int:
        """Number of rows of a split; 0 for one that is not used."""
        return len(self.tables[split]) if split in self.tables else 0


def open_vlm_data(config: Config, objective: Objective, *, record: Path | None = None, head: bool = False) -> VLMData:
    """Every row of the run; its pictures decoded once, or none of them (``head``, or ``data.verify: head``).

    ``record``: a folder that keeps the result of going through the pictures. Rows whose pictures are not looked at, or
    that turn out too long, count for nothing when they are trained on, are named, and are limited by
    ``data.max_corrupt``.
    """
    data = config.data
    unchecked = head or data.verify == "head"
    table = open_table(data) if unchecked else open_source(data, record=record and record / PICTURE_CHECK)
    looked_at = table if not unchecked else table[:HEAD]
    _check_margins(objective, looked_at)
    report = str(table.report)
    if lacking := _told_lacking(config, objective, looked_at):
        report += f" {lacking}"
    if "preference" not in objective.asks and table.report.soft:
        report += (
            f" {count(table.report.soft, 'soft label')} used as hard ones: no term of the objective asks for "
            "preference (soft_dpo does)."
        )
    if not data.held_out:
        return VLMData({TRAIN: table}, report)
    train, held_out = split_by_prompt(table, data.held_out)  # by picture, where rows have one
    report += f" Split by picture: {count(len(train), 'row')} to train on, {len(held_out)} held out."
    return VLMData({TRAIN: train, HELD_OUT: held_out}, report)


def _told_lacking(config: Config, objective: Objective, table: RowTable[VLMPair]) -> str:
    """How many rows lack a branch; ValueError for one that no row has, and for frames of videos where none is."""
    assert config.vlm is not None
    branches = branches_of(objective, config.vlm)
    derived = [of for of in branches if of.change not in (None, NO_PICTURES) or of.side == GOLD]
    if config.vlm.frames is not None and not any(row.all_videos for row in table):
        raise ValueError(f"vlm.frames={config.vlm.frames} would be ignored: no row has a video")
    return told_lacking(derived, table) if derived else ""


def _check_margins(objective: Objective, table: RowTable[VLMPair]) -> None:
    if "margin" not in objective.asks:
        return
    without = [row.sample_id for row in table if row.margin is None]
    if without:
        more = ", ..." if len(without) > NAMED else ""
        raise ValueError(
            f"the objective asks for a margin (reward of chosen - reward of rejected), which {len(without)} of "
            f"{count(len(table), 'row')} lack: {', '.join(without[:NAMED])}{more}; choose a loss that does "
            "not ask for it"
        )
