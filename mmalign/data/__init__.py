"""Preference data: one file per format, one lazy table of rows, and every bad row counted and named.

To add a format, write ``open_NAME(config) -> RowTable`` in a file of its own and add its line to ``SOURCES``.
"""

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from mmalign.data.audio_alpaca import open_audio_alpaca
from mmalign.data.canonical import open_canonical
from mmalign.data.canonical_writer import write_canonical
from mmalign.data.decoding import UnreadableImage, decode
from mmalign.data.detect import Detected, detect_source
from mmalign.data.genai_bench import open_genai_bench
from mmalign.data.hpdv2 import open_hpdv2
from mmalign.data.imagereward import open_imagereward
from mmalign.data.images import open_images
from mmalign.data.kto_csv import open_kto_csv
from mmalign.data.memory import table_of
from mmalign.data.pickapic import open_pickapic
from mmalign.data.pickapic_rankings import open_pickapic_rankings
from mmalign.data.pixels import PreparedPair, PreparedRow, prepare_pair, prepare_row
from mmalign.data.split import split_by_prompt
from mmalign.data.table import RowTable, TableReport
from mmalign.data.verification import verify
from mmalign.data.views import is_already, read_as, rows_used, source_config, without_bad
from mmalign.data.webdataset import open_webdataset
from mmalign.data.writers import write_images, write_pickapic_table
from mmalign.training.config import DataConfig


def open_auto(config: DataConfig) -> RowTable:
    """The table of the source that ``detect_source`` names; its report says why."""
    found = detect_source(config.path, split=config.split, revision=config.revision)
    # Validated again: a setting that the source found would ignore is an error here too.
    table = SOURCES[found.source](DataConfig(**{**config.model_dump(), "source": found.source}))
    notes = (f"Recognised as {found.source}: {found.why}.", *table.report.notes)
    return replace(table, report=replace(table.report, notes=notes))


SOURCES: dict[str, Callable[[DataConfig], RowTable]] = {
    "pickapic": open_pickapic,
    "images": open_images,
    "canonical": open_canonical,
    "hpdv2": open_hpdv2,
    "imagereward": open_imagereward,
    "genai_bench": open_genai_bench,
    "kto_csv": open_kto_csv,
    "pickapic_rankings": open_pickapic_rankings,
    "webdataset": open_webdataset,
    "audio_alpaca": open_audio_alpaca,
    "auto": open_auto,
}


__all__ = [
    "SOURCES",
    "Detected",
    "PreparedPair",
    "PreparedRow",
    "RowTable",
    "TableReport",
    "UnreadableImage",
    "decode",
    "detect_source",
    "open_audio_alpaca",
    "open_canonical",
    "open_genai_bench",
    "open_hpdv2",
    "open_imagereward",
    "open_images",
    "open_kto_csv",
    "open_pickapic",
    "open_pickapic_rankings",
    "open_source",
    "open_table",
    "open_webdataset",
    "prepare_pair",
    "prepare_row",
    "split_by_prompt",
    "table_of",
    "verify",
    "write_canonical",
    "write_images",
    "write_pickapic_table",
]


def open_source(
    config: DataConfig, *, record: Path | None = None, check: Callable[[RowTable], None] | None = None
) -> RowTable:
    """The table ``config`` asks for: indexed, ties settled, cut to ``max_rows``, every picture checked.

    ``record``: a JSON file that keeps the result of the picture check, so that it is not repeated (see ``verify``).
    ``check`` is called with the table before the first picture is decoded; what it raises comes through.
    Raises ValueError for an unknown source, an unusable file, or more than ``max_corrupt`` unusable rows.
    """
    table, derived = _open(config)
    if check is not None:
        check(table if derived is None else derived)
    if derived is None:
        return verify(table, config.max_corrupt, record=record)
    checked = verify(rows_used(derived, table), config.max_corrupt, record=record)
    return without_bad(derived, table, checked)


def open_table(config: DataConfig) -> RowTable:
    """The same table before any picture is looked at: what is not a picture may still hide behind its row."""
    table, derived = _open(config)
    return table if derived is None else derived


def _open(config: DataConfig) -> tuple[RowTable, RowTable | None]:
    """The source's own rows, and what ``data.as`` makes of them (None: they stay as they are)."""
    if config.source not in SOURCES:
        close = get_close_matches(config.source, SOURCES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"data.source={config.source!r} is unknown; choose one of {', '.join(SOURCES)}.{hint}")
    table = SOURCES[config.source](source_config(config))
    if config.as_ == "native":
        return table, None
    if is_already(table, config):
        return SOURCES[config.source](config), None
    return table, read_as(table, config)
