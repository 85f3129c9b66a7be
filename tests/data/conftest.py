"""Shards that tests write for themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def write_shard(tmp_path: Path) -> Callable[..., Path]:
    """``write_shard(rows, name="shard.parquet", row_group_size=None)`` writes dicts as parquet and gives the path."""

    def write(rows: list[dict[str, Any]], name: str = "shard.parquet", row_group_size: int | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
        return path

    return write
