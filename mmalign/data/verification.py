"""Decoding every picture once before training, so that a bad one cannot stop a run in its third hour."""

import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmalign.data.decoding import UnreadableImage, decode
from mmalign.data.table import NAMED, R, RowTable, hashed, named
from mmalign.types import AnyRow, ImageBytes, VLMPair

AHEAD = 4  # pairs per thread that wait in memory for a free decoder


def verify(table: RowTable[R], max_corrupt: float, *, record: Path | None = None) -> RowTable[R]:
    """``table`` without the rows whose pictures do not decode in full; its report names each with the reason.

    Rows are refused, not skipped, once their share of all labelled rows - those the source already found unusable
    included - is above ``max_corrupt``: a ValueError with the first ten. ``record`` is a JSON file that keeps the
    result, so that a resumed run, or another process, with the same files and settings need not decode again.
    """
    known = _recorded(record, table.fingerprint)
    bad = _scan(table, max_corrupt) if known is None else known
    corrupt = (*table.report.corrupt, *bad)
    refuse_if_above(corrupt, len(table) + len(table.report.corrupt), max_corrupt, complete=True)
    if known is None and record is not None:
        _write(record, table.fingerprint, bad)
    reasons = dict(bad)
    kept = table
    if bad:  # names of all rows are long, so they are asked for only where some are needed
        kept = table.select(index for index, name in enumerate(table.sample_ids) if name not in reasons)
    if not len(kept):
        raise ValueError(f"{table.report.source}: no usable row is left. {replace(table.report, kept=0)}")
    return replace(kept, report=replace(table.report, kept=len(kept), corrupt=corrupt))


def problem_of(row: AnyRow) -> str | None:
    """Why the row cannot be used: the first of its pictures that does not decode, a video that is not there; or None.

    Videos that are files are only looked for: what decodes them is the model's own processor.
    """
    for image in pictures_of(row):
        try:
            decode(image)
        except UnreadableImage as error:
            return str(error)
    for video in row.all_videos if isinstance(row, VLMPair) else ():
        if video.path is not None and not video.path.is_file():
            return f"{video.origin}: file not found: {video.path}"
    return None


def pictures_of(row: AnyRow) -> tuple[ImageBytes, ...]:
    """Every picture of a row, those of single sides and branches included."""
    return row.pictures if isinstance(row, VLMPair) else row.images


def _scan(table: RowTable[AnyRow], max_corrupt: float) -> list[tuple[str, str]]:
    before = table.report.corrupt
    rows = len(table) + len(before)
    bad: list[tuple[str, str]] = []
    with progress_bar() as progress:
        task = progress.add_task("checking pictures", total=len(table))
        for sample_id, problem in _problems(table):
            progress.advance(task)
            if problem is not None:
                bad.append((sample_id, problem))
                refuse_if_above((*before, *bad), rows, max_corrupt, complete=False)
    return bad


def _problems(table: RowTable[AnyRow]) -> Iterator[tuple[str, str | None]]:
    """(sample id, problem) of every row: read here, in order, and decoded by threads (Pillow releases the GIL)."""
    threads = os.cpu_count() or 1
    waiting: deque[tuple[str, Future[str | None]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for row in table:
                waiting.append((row.sample_id, pool.submit(problem_of, row)))
                if len(waiting) > AHEAD * threads:
                    sample_id, future = waiting.popleft()
                    yield sample_id, future.result()
            for sample_id, future in waiting:
                yield sample_id, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def refuse_if_above(corrupt: tuple[tuple[str, str], ...], rows: int, max_corrupt: float, *, complete: bool) -> None:
    """ValueError where a larger share of ``rows`` than ``max_corrupt`` is bad; of a part of them, from ten bad ones."""
    # Dividing, because 29 / 100 is the same float as a limit of 0.29, while 0.29 * 100 is below 29.
    if not corrupt or len(corrupt) / rows <= max_corrupt or (not complete and len(corrupt) < NAMED):
        return
    share = len(corrupt) / rows
    at_least = "" if complete else "at least "
    raise ValueError(
        f"{at_least}{len(corrupt)} of {rows} rows cannot be used ({share:.2%}, data.max_corrupt={max_corrupt:g}): "
        f"{named(corrupt)}. Repair or remove them, or raise data.max_corrupt to skip them"
    )


def progress_bar(*, quiet: bool = False) -> Progress:
    """A bar on standard error that goes away when its work is done; ``quiet``: of which nothing is seen."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    console = Console(stderr=True, quiet=quiet)
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True)


def _recorded(record: Path | None, fingerprint: str) -> list[tuple[str, str]] | None:
    """Result of an earlier check of the same rows, or None. A record of other rows is not an error: it is redone."""
    if record is None or not record.is_file():
        return None
    saved = json.loads(record.read_text())
    return [(sample_id, reason) for sample_id, reason in saved["corrupt"]] if saved["of"] == fingerprint else None


def _write(record: Path, fingerprint: str, bad: list[tuple[str, str]]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    partial = record.with_name(f"{record.name}.{hashed(os.getpid())[:8]}.partial")
    partial.write_text(json.dumps({"of": fingerprint, "corrupt": bad}, indent=1))
    partial.replace(record)
