"""GenAI-Bench, image generation: parquet rows of a prompt, two pictures and how people voted.

Columns as on the dataset card (TIGER-Lab/GenAI-Bench, configuration image_generation): ``prompt``, ``left_model``,
``left_image``, ``right_model``, ``right_image`` (pictures inside) and ``vote_type``, which is one of ``leftvote``,
``rightvote``, ``tievote`` and ``bothbad_vote`` (TIGER-AI-Lab/GenAI-Bench inference.py). The last two are ties; which of
them it was stays in ``extras``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mmalign.data.folder import refuse_settings
from mmalign.data.hub import groups_to_keep, locate
from mmalign.data.indexed import IndexBuilder
from mmalign.data.parquet import reader_of
from mmalign.data.settling import Reading, refuse_empty, settle
from mmalign.data.shards import Shard, row_groups
from mmalign.data.table import RowTable
from mmalign.training.config import DataConfig
from mmalign.types import ImageBytes

PICTURES = ("left_image", "right_image")
LIGHT = ("prompt", "left_model", "right_model", "vote_type")
NEEDED = ("prompt", *PICTURES, "vote_type")
OTHER_CONFIGURATIONS = ("image_edition", "video_generation")  # of the same dataset, in folders beside it
VOTES = {"leftvote": 1.0, "rightvote": 0.0, "tievote": 0.5, "bothbad_vote": 0.5}


def open_genai_bench(config: DataConfig) -> RowTable:
    """Index ``config.path`` (a file, a folder, a glob or a hub id). ``sample_id`` is ``FILE:ROW``; rows with another
    vote or without a prompt are counted as unusable; models and the vote go to ``extras``."""
    refuse_settings(config, "images")
    shards: list[Shard] = []
    marks: list[object] = []
    builder, corrupt = IndexBuilder("pair", SideBySide.columns), []
    for location in locate(config):
        if any(other in location.name for other in OTHER_CONFIGURATIONS):
            continue
        shard = Shard.at(location)
        _check_columns(shard)
        table = shard.read([name for name in LIGHT if name in shard.schema.names])
        for number, row in enumerate(table.to_pylist()):
            prompt, vote = row.pop("prompt"), row["vote_type"]
            if vote not in VOTES or not isinstance(prompt, str):
                reason = "prompt is null" if vote in VOTES else f"vote_type={vote!r} is none of {', '.join(VOTES)}"
                corrupt.append((len(builder), f"{shard.name}:{number}", reason))
                continue
            place = {"file": len(shards), "row": number, "first_wins": VOTES[vote]}
            builder.append(sample_id=f"{shard.name}:{number}", prompt=prompt, extras=row, **place)
        shards.append(shard)
        marks += [shard.name, *shard.mark]
    pictures = SideBySide(shards, groups_to_keep(config))
    files = tuple(shard.name for shard in shards)
    reading = Reading("genai_bench", "pair", files, builder.finish(), pictures, corrupt, tuple(marks))
    refuse_empty(reading, f"one with the columns {', '.join(NEEDED)}")
    return settle(reading, config)


class SideBySide:
    """The left and the right picture, each in a column of its own."""

    columns: Mapping[str, pa.DataType] = {"file": pa.int32(), "row": pa.int64()}

    def __init__(self, shards: Sequence[Shard], keep: int) -> None:
        self.shards = tuple(shards)
        self.reader = reader_of(shards, PICTURES, keep)

    def read(self, place: Mapping[str, Any]) -> tuple[ImageBytes, ...]:
        """Left, then right."""
        name = f"{self.shards[place['file']].name}:{place['row']}"
        cells = zip(PICTURES, self.reader(place["file"], place["row"]), strict=True)
        return tuple(
            ImageBytes(origin=f"{name} {column}", data=(cell.get("bytes") if isinstance(cell, dict) else cell) or b"")
            for column, cell in cells
        )

    def extras(self, place: Mapping[str, Any]) -> str | None:
        """Models and vote."""
        return place["extras"]

    def blocks(self, index: pa.Table) -> np.ndarray:
        """One number per row group, counted through all shards."""
        return row_groups(self.shards, index.column("file").to_numpy(), index.column("row").to_numpy())

    def keys(self, _: pa.Table) -> list[tuple[str, ...]]:
        """Not known: no row is said to hold the picture of another."""
        raise ValueError("genai_bench: which pictures are the same is not known")


def _check_columns(shard: Shard) -> None:
    missing = [name for name in NEEDED if name not in shard.schema.names]
    if missing:
        raise ValueError(
            f"{shard.path} lacks {', '.join(missing)}; it has {', '.join(shard.schema.names)}. "
            f"GenAI-Bench's image_generation has {', '.join(NEEDED)}"
        )
