"""A reward model, or a file of its scores, measured on a table of judged rows; and the files that tell of it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from mmalign.data import RowTable, decode
from mmalign.evaluation.accuracy import best_threshold
from mmalign.evaluation.judged import Judged
from mmalign.evaluation.reward import RewardEvaluation, evaluate_reward
from mmalign.labelling.judging import judged_rows
from mmalign.labelling.rewards import open_reward
from mmalign.labelling.score_file import ScoreFile
from mmalign.labelling.scoring import ScoredRow, ScoreRecords, score_chunks, scoring_key
from mmalign.report.reward import Mistake, write_reward_report
from mmalign.rewards import RewardModel
from mmalign.types import PreferencePair

MISTAKES = 6
SIDE = 256


@dataclass(frozen=True)
class Judge:
    """What scores the pictures: a loaded ``reward``, made with ``options``, or a ``file`` of scores."""

    name: str
    version: str
    scale: str
    reward: RewardModel | None = None
    file: ScoreFile | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_reward(cls, name: str, options: Mapping[str, Any]) -> "Judge":
        """An installed reward model by name, or a YAML file that combines some."""
        model = open_reward(name, **options)
        return cls(model.name, model.version, model.scale, reward=model, options=options)

    @classmethod
    def from_file(cls, path: Path, *, reward: str | None = None, roots: Sequence[Path] = ()) -> "Judge":
        """Scores that are there already; see :meth:`ScoreFile.read`."""
        file = ScoreFile.read(path, reward=reward, roots=roots)
        return cls(file.reward, file.version, file.scale, file=file)

    def scores(
        self, table: RowTable, folder: Path | None, *, batch_size: int, progress: Callable[[int], None] | None
    ) -> list[ScoredRow]:
        """Scores of every row; those of a model are kept in ``folder``, so that an interrupted scoring goes on."""
        if self.file is not None:
            return self.file.scored(table, progress)
        assert self.reward is not None
        key = scoring_key(table.fingerprint, [self.reward], "statistics", options=self.options)
        records = ScoreRecords(folder, key, len(table))
        score_chunks(
            table, [self.reward], records, records.chunks, batch_size=batch_size, statistics=True, progress=progress
        )
        return records.all()


@dataclass(frozen=True)
class JudgedData:
    """``evaluation``, and the groups it was measured on."""

    evaluation: RewardEvaluation
    groups: Sequence[Judged] = field(repr=False)


def evaluate_on(
    judge: Judge,
    table: RowTable,
    folder: Path | None,
    *,
    validation: RowTable | None = None,
    rules: Sequence[str] = (),
    threshold: float | None = None,
    temperature: float = 1.0,
    batch_size: int = 16,
    bootstrap: int = 2000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> JudgedData:
    """Score ``table``, and ``validation`` for the threshold of the rule ``pickapic``, and measure everything."""
    notes = [f"Ties and all other labels are as the data has them. {table.report}"]
    if validation is not None:
        kept = None if folder is None else folder / "scores_validation"
        scored = judge.scores(validation, kept, batch_size=batch_size, progress=progress)
        groups, left_out = judged_rows(validation, scored, judge.name)
        threshold = best_threshold([group.divided_by(temperature) for group in groups])
        notes += [f"Validation: {note}" for note in left_out]
        notes.append(f"The threshold of rule pickapic is {threshold:g}, chosen on {len(groups)} validation rows.")
    kept = None if folder is None else folder / "scores"
    scored = judge.scores(table, kept, batch_size=batch_size, progress=progress)
    groups, left_out = judged_rows(table, scored, judge.name)
    evaluation = evaluate_reward(
        groups,
        reward=judge.name,
        version=judge.version,
        scale=judge.scale,
        data=", ".join(table.report.files[:5]) + (" ..." if len(table.report.files) > 5 else ""),
        rules=rules,
        threshold=threshold,
        temperature=temperature,
        notes=[*notes, *left_out],
        bootstrap=bootstrap,
        seed=seed,
    )
    return JudgedData(evaluation, groups)


def write_evaluation(result: JudgedData, table: RowTable, folder: Path) -> list[Path]:
    """``results.json``, ``table.txt`` and ``report.html`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(width=200, record=True, file=Path(os.devnull).open("w"))  # noqa: SIM115 - lives as long as it
    console.print(result.evaluation.table())
    console.file.close()
    texts = {"results.json": result.evaluation.to_json(), "table.txt": console.export_text()}
    for name, text in texts.items():
        partial = folder / f"{name}.{os.getpid()}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / name)
    mistakes = _surest_mistakes(result.groups, table)
    report = write_reward_report(result.evaluation, folder / "report.html", mistakes)
    return [folder / "results.json", folder / "table.txt", report]


def _surest_mistakes(groups: Sequence[Judged], table: RowTable) -> list[Mistake]:
    """Of pairs: chosen and rejected side by side, where the rejected picture scored highest above the chosen one."""
    if table.kind != "pair":
        return []
    gaps = {
        group.sample_id: (max if group.labels[0] < group.labels[1] else min)(0.0, group.scores[0] - group.scores[1])
        for group in groups
        if group.labels[0] != group.labels[1]
    }
    worst = sorted((name for name in gaps if gaps[name]), key=lambda name: -abs(gaps[name]))[:MISTAKES]
    places = {sample_id: index for index, sample_id in enumerate(table.sample_ids) if sample_id in set(worst)}
    shown = []
    for name in worst:
        row = table[places[name]]
        assert isinstance(row, PreferencePair)
        shown.append((f"{row.prompt[:120]} (rejected scores {abs(gaps[name]):.3g} higher)", _beside(row)))
    return shown


def _beside(row: PreferencePair) -> Image.Image:
    both = [decode(image) for image in row.images]
    sheet = Image.new("RGB", (2 * SIDE + 8, SIDE), "white")
    for place, picture in enumerate(both):
        scale = SIDE / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        sheet.paste(picture.resize(size, Image.Resampling.LANCZOS), (place * (SIDE + 8), 0))
    return sheet
