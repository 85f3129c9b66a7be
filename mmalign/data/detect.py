"""``data.source: auto``: which format the files at a path are, and why."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from mmalign.data import (
    audio_alpaca,
    canonical,
    genai_bench,
    hpdv2,
    imagereward,
    kto_csv,
    pickapic,
    pickapic_rankings,
)
from mmalign.data.forms import FORMS
from mmalign.data.hub import is_hub_id, locate
from mmalign.data.records import read_array, read_records
from mmalign.data.shards import Shard, find_shards
from mmalign.training.config import DataConfig

KINDS = (".parquet", ".tar", ".jsonl", ".csv", ".json")


class Detected(NamedTuple):
    """A key of ``SOURCES``, and what tells it."""

    source: str
    why: str


def detect_source(path: str, *, split: str | None = None, revision: str | None = None) -> Detected:
    """The source that reads ``path``: a file, a folder, a glob or a dataset id of the hub.

    Only the first file, and of it the columns or the first row, are looked at. Raises ValueError where nothing is
    there, a folder holds several kinds of file, or no source reads what is there: the message lists its columns.
    """
    config = DataConfig(source="auto", path=path, split=split, revision=revision)
    if is_hub_id(path):
        return _of_parquet(Shard.at(locate(config)[0]))
    given = Path(path).expanduser()
    if not given.is_file():
        suffix = _suffix_in(given, path)
        if suffix == ".tar":
            return Detected("webdataset", f"{path} holds .tar shards")
        return _of_parquet(Shard.at(locate(config)[0]))
    suffix = given.suffix.lower()
    if suffix == ".tar":
        return Detected("webdataset", f"{given.name} is a .tar shard")
    if suffix == ".parquet":
        return _of_parquet(Shard.of(given, given.name))
    if suffix == ".json":
        return _of_json(given)
    if suffix == ".csv":
        return _of_csv(given)
    if suffix == ".jsonl":
        record = next(iter(read_records(given)), None)
        return _of_table(given, list(record.fields) if record else [])
    raise ValueError(f"{given}: no source reads {suffix or 'a file without suffix'}; known are {', '.join(KINDS)}")


def _suffix_in(folder: Path, path: str) -> str:
    """The one kind of shards in a folder or under a glob."""
    found = [suffix for suffix in (".parquet", ".tar") if _any_shard(folder, path, suffix)]
    if len(found) == 1:
        return found[0]
    if len(found) == 2:
        raise ValueError(
            f"{path} holds .parquet and .tar files; choose with a glob, for instance data.path='{path}/*.tar'"
        )
    if folder.is_dir():
        inside = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in KINDS)
        if inside:
            raise ValueError(f"data.path={path} is a folder; give the file itself (it holds {', '.join(inside[:10])})")
    find_shards(path)  # says that nothing is there
    raise ValueError(f"data.path={path} holds nothing that a source reads; known are {', '.join(KINDS)}")


def _any_shard(folder: Path, path: str, suffix: str) -> bool:
    if folder.is_dir():
        return next(folder.rglob(f"*{suffix}"), None) is not None
    try:
        return any(file.suffix == suffix for file, _ in find_shards(path))
    except ValueError:
        return False


def _of_parquet(shard: Shard) -> Detected:
    schema, name = shard.schema, shard.name
    header = canonical.read_header(schema, shard.path)
    if header is not None:
        return Detected("canonical", f"the footer of {name} says {canonical.FORMAT}, {header.kind} rows")
    columns = set(schema.names)
    if set(pickapic.NEEDED) <= columns:
        return Detected("pickapic", f"{name} has the columns {', '.join(pickapic.NEEDED)}")
    if set(pickapic_rankings.NEEDED) <= columns:
        return Detected("pickapic_rankings", f"{name} has the columns {', '.join(pickapic_rankings.NEEDED)}")
    if set(imagereward.ROW_KEYS) <= columns and columns & {imagereward.PATH, imagereward.PICTURE}:
        return Detected("imagereward", f"{name} has the columns {', '.join(imagereward.ROW_KEYS)} and a picture")
    if set(genai_bench.NEEDED) <= columns:
        return Detected("genai_bench", f"{name} has the columns {', '.join(genai_bench.NEEDED)}")
    if audio_alpaca.is_audio(shard):
        return Detected("audio_alpaca", f"{name} has the columns prompt, chosen and rejected, and they are audio")
    raise ValueError(f"{shard.path}: no source reads its columns {', '.join(_described(schema))}{_KNOWN}")


def _described(schema: pa.Schema) -> list[str]:
    return [f"{field.name} ({str(field.type).split('<')[0]})" for field in schema]


# A row per image has the keys of a ranking of HPDv2 too, so it comes first.
_OF_JSON = (
    ("imagereward", (*imagereward.ROW_KEYS[:2], imagereward.PATH)),
    ("imagereward", imagereward.ITEM_KEYS),
    ("hpdv2", hpdv2.PAIR_KEYS),
    ("hpdv2", hpdv2.RANKING_KEYS),
)


def _of_json(path: Path) -> Detected:
    item: Any = next((item for _, item in read_array(path)), None)
    keys = set(item) if isinstance(item, dict) else set()
    for source, needed in _OF_JSON:
        if set(needed) <= keys:
            return Detected(source, f"the first item of {path.name} has the keys {', '.join(needed)}")
    given = ", ".join(sorted(keys)) or f"a {type(item).__name__}"
    raise ValueError(f"{path}: no source reads its first item, {given}; rows of your own go into a .jsonl file{_KNOWN}")


def _of_csv(path: Path) -> Detected:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        try:
            header = next(csv.reader(lines), [])
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not CSV in UTF-8 ({error})") from error
    paths = [name for name in kto_csv.PATHS if name in header]
    if paths and "caption" in header and {"label", "split"} & set(header):
        return Detected("kto_csv", f"{path.name} has the columns {paths[0]}, caption and label or split")
    return _of_table(path, header)


def _of_table(path: Path, names: list[str]) -> Detected:
    form = next((form for form in FORMS if set(form.names) <= set(names)), None)
    if form is None or not {"prompt", "caption"} & set(names):
        given = ", ".join(names) or "none"
        raise ValueError(f"{path}: no source reads its columns ({given}){_KNOWN}")
    return Detected("images", f"{path.name} has a prompt and {', '.join(form.names)}: {form.kind} rows of your own")


_KNOWN = (
    ". Sources: pickapic (caption, jpg_0, jpg_1, label_0, label_1), canonical, hpdv2, imagereward, genai_bench, "
    "kto_csv, pickapic_rankings, webdataset, and images for a .jsonl or .csv of your own (prompt, chosen, rejected)"
)
