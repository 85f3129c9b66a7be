"""From a format's parser to a table: every record parsed once, broken ones named, the rest read when asked for."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mmalign.data.folder import images_root, refuse_settings
from mmalign.data.hub import groups_to_keep, is_hub_id, locate
from mmalign.data.indexed import texts
from mmalign.data.labels import refuse_ties
from mmalign.data.shards import Shard
from mmalign.data.table import RowTable, TableReport, hashed
from mmalign.training.config import DataConfig
from mmalign.types import VLMPair
from mmalign.vlm_data.drafts import Broken, Draft, shortened
from mmalign.vlm_data.media import Where, pair_of, paths_mark
from mmalign.vlm_data.parquet_files import ParquetRecords
from mmalign.vlm_data.record_files import SUFFIXES, RecordFile

Parse = Callable[[Mapping[str, Any]], Sequence[Draft]]
CHUNK = 8192
_TEXT = pa.dictionary(pa.int32(), pa.large_string())


@dataclass(frozen=True)
class Format:
    """``parse`` makes drafts of one record or raises Broken. ``rated``: of k responses with scores.

    ``heavy``: parquet columns that hold nothing but pictures' bytes; ``parse`` must do without them while the files are
    indexed. ``notes``: said in the report where it holds for any row.
    """

    name: str
    parse: Parse
    heavy: tuple[str, ...] = ()
    rated: bool = False
    notes: Mapping[str, Callable[[Draft], bool]] = field(default_factory=dict)


class Records(Protocol):
    """Where records lie."""

    @property
    def columns(self) -> Mapping[str, pa.DataType]: ...
    @property
    def files(self) -> tuple[str, ...]: ...
    @property
    def marks(self) -> tuple[object, ...]: ...
    def where(self, place: Mapping[str, Any], /) -> tuple[str, int]: ...
    def root_of(self, place: Mapping[str, Any], /) -> Path | None: ...
    def scan(self) -> Iterator[tuple[dict[str, int], Any]]: ...
    def read(self, place: Mapping[str, Any], /) -> dict[str, Any]: ...
    def blocks(self, index: pa.Table, /) -> np.ndarray: ...


class VLMRows:
    """Storage: the index has ids, prompts and places; a row is parsed again, pictures and all, when it is asked for."""

    def __init__(self, index: pa.Table, records: Records, parse: Parse, root: Path | None) -> None:
        self.index, self.records, self.parse, self.root = index, records, parse, root

    def __len__(self) -> int:
        return self.index.num_rows

    def __getitem__(self, position: int) -> VLMPair:
        place: dict[str, Any] = self.index.slice(position, 1).to_pylist()[0]
        where = Where(*self.records.where(place), root=self.root or self.records.root_of(place))
        draft = self.parse(self.records.read(place))[place["part"]]
        return pair_of(draft, where, place["sample_id"])

    @property
    def prompts(self) -> list[str]:
        """Conversation of every row as text; equal ones are one object."""
        return texts(self.index.column("prompt"))

    @property
    def groups(self) -> list[str]:
        """What rows about the same picture share: its path, or the prompt where there is none; see ``split``."""
        return texts(self.index.column("group"))

    @property
    def sample_ids(self) -> list[str]:
        """Sample id of every row."""
        return self.index.column("sample_id").to_pylist()

    @property
    def blocks(self) -> np.ndarray:
        """Numbers of the stretches of storage that rows lie in."""
        return self.records.blocks(self.index)


def open_format(form: Format, config: DataConfig) -> RowTable[VLMPair]:
    """The table of ``config.path`` (a file; for parquet also a folder, a glob or a dataset id of the hub).

    Nothing but texts is read. Rows that cannot be used are left out, and named in the report with field and value;
    ``mmalign.data.verify`` refuses more than ``data.max_corrupt`` of them, and looks at the pictures.
    """
    if config.as_ == "unary":
        raise ValueError(f"data.as=unary has no meaning for source {config.source}, whose rows are pairs of responses")
    if config.pairs == "best_vs_worst" and not form.rated:
        raise ValueError(f"data.pairs={config.pairs} has no meaning for source {config.source}, one pair per record")
    records = _records(form, config)
    root = None if config.images is None else images_root(config, Path(config.path).expanduser())
    scan = _Scan(form, records, root)
    for place, fields in records.scan():
        scan.add(place, fields)
    return scan.table(config)


def _records(form: Format, config: DataConfig) -> Records:
    path = Path(config.path).expanduser()
    if path.suffix.lower() in SUFFIXES and not is_hub_id(config.path):
        refuse_settings(config, "split", "revision")
        if not path.is_file():
            raise ValueError(f"data.path={config.path} does not exist; source {config.source} reads a file or parquet")
        return RecordFile(path)
    shards = [Shard.at(location) for location in locate(config)]
    return ParquetRecords(shards, form.heavy, groups_to_keep(config))


class _Scan:
    """What is gathered record by record."""

    def __init__(self, form: Format, records: Records, root: Path | None) -> None:
        self.form, self.records, self.root = form, records, root
        light = {"sample_id": pa.string(), "prompt": pa.large_string(), "group": pa.large_string()}
        judged = {"preference": pa.float64(), "part": pa.int32()}
        self.schema = pa.schema({**light, **judged, **records.columns})
        self.rows: list[dict[str, Any]] = []
        self.chunks: list[pa.Table] = []
        self.corrupt: list[tuple[int, str, str]] = []
        self.mark = hashlib.sha256()
        self.notes: dict[str, int] = {}
        self.count = 0

    def add(self, place: dict[str, int], fields: Any) -> None:
        """Parse one record; what is wrong with it goes to ``corrupt``."""
        name = "{}:{}".format(*self.records.where(place))
        try:
            if not isinstance(fields, Mapping):
                raise Broken(f"is {shortened(fields)}; a record must be an object")
            drafts = self.form.parse(fields)
        except (Broken, ValueError) as error:
            self.corrupt.append((self.count, name, str(error)))
            return
        for part, draft in enumerate(drafts):
            own = draft.sample_id or (f"{name}/{part}" if len(drafts) > 1 else name)
            self._add(draft, {**place, "part": part}, own)

    def _add(self, draft: Draft, place: dict[str, int], sample_id: str) -> None:
        root = self.root or self.records.root_of(place)
        where = Where(*self.records.where(place), root=root, indexing=isinstance(self.records, ParquetRecords))
        try:
            row = pair_of(draft, where, sample_id)
        except ValueError as error:
            self.corrupt.append((self.count, sample_id, str(error).removeprefix(f"{sample_id}: ")))
            return
        self.mark.update(paths_mark(row).encode())
        for note, holds in self.form.notes.items():
            self.notes[note] = self.notes.get(note, 0) + holds(draft)
        light = {"sample_id": sample_id, "prompt": row.prompt_text, "group": _group(draft, row)}
        self.rows.append({**light, "preference": row.preference, **place})
        self.count += 1
        if len(self.rows) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            self.chunks.append(pa.Table.from_pylist(self.rows, self.schema))
            self.rows = []

    def table(self, config: DataConfig) -> RowTable[VLMPair]:
        """The rows that stay under ``data.ties`` and ``data.max_rows``."""
        self._flush()
        index = pa.concat_tables(self.chunks) if self.chunks else self.schema.empty_table()
        for name in ("prompt", "group"):
            place = index.schema.get_field_index(name)
            index = index.set_column(place, pa.field(name, _TEXT), index.column(name).cast(_TEXT))
        index = index.unify_dictionaries().combine_chunks()
        if not index.num_rows and not self.corrupt:
            raise ValueError(f"{', '.join(self.records.files)}: no rows")
        _refuse_duplicates(index)
        preference = index.column("preference").to_numpy()
        seen, kept, ties = _settle(preference, config)
        refuse_ties(config.ties, len(ties), seen, index.column("sample_id").take(ties[:16]).to_pylist())
        seen_all = seen == index.num_rows
        corrupt = tuple((name, why) for before, name, why in self.corrupt if seen_all or before < seen)
        labels = preference[kept]
        report = TableReport(
            source=self.form.name,
            files=self.records.files,
            rows=index.num_rows + len(self.corrupt),
            kept=len(kept),
            ties=len(ties),
            ties_policy=config.ties,
            soft=int(((labels > 0.5) & (labels < 1)).sum()),
            beyond_max_rows=index.num_rows - seen + len(self.corrupt) - len(corrupt),
            corrupt=corrupt,
            notes=tuple(f"{number} rows {note}." for note, number in self.notes.items() if number),
        )
        mark = hashed(self.form.name, config.ties, config.max_rows, *self.records.marks, self.mark.hexdigest())
        if len(kept) < index.num_rows:
            index = index.take(pa.array(kept)).combine_chunks()
        storage = VLMRows(index, self.records, self.form.parse, self.root)
        return RowTable(storage, range(len(storage)), report, mark, "vlm_pair")


def _settle(preference: np.ndarray, config: DataConfig) -> tuple[int, np.ndarray, np.ndarray]:
    """(rows looked at, rows kept, ties among those looked at)."""
    good = preference > 0.5 if config.ties == "drop" else np.ones(len(preference), dtype=bool)
    kept = np.flatnonzero(good)
    seen = len(preference)
    if config.max_rows is not None and len(kept) > config.max_rows:
        kept = kept[: config.max_rows]
        seen = int(kept[-1]) + 1
    return seen, kept, np.flatnonzero(preference[:seen] == 0.5)


def _group(draft: Draft, row: VLMPair) -> str:
    """What rows share that must not be split: the path of the first picture or video, or the prompt."""
    shown = [*draft.images, *(draft.chosen_images or ()), *draft.videos, *(draft.chosen_videos or ())]
    if not shown:
        return row.prompt_text
    first = shown[0].get("path") if isinstance(shown[0], Mapping) else shown[0]
    return first if isinstance(first, str) and not first.startswith("data:") else row.sample_id


def _refuse_duplicates(index: pa.Table) -> None:
    ids = index.column("sample_id")
    if len(ids.unique()) < index.num_rows:
        twice = next(entry["values"] for entry in ids.value_counts().to_pylist() if entry["counts"] > 1)
        raise ValueError(f"sample_id={twice!r} is there twice; ids must be unique")
