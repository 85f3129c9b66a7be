"""Where negatives start: rows with a good response in any format that is read, or bare pictures with a request."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

from PIL import Image

from mmalign.data.decoding import FORMATS, UnreadableImage, decode
from mmalign.data.table import RowTable, hashed
from mmalign.negatives.answers import Answered
from mmalign.training.config import DataConfig
from mmalign.types import ImageBytes, ImagePart, Message, VLMPair
from mmalign.vlm_data import VLM_SOURCES, detect_vlm_source
from mmalign.vlm_data.sft import open_sft

DESCRIBE = "Describe this image in detail."
LOOKED_AT = 8  # rows whose pictures are opened before a model is loaded
Kind = Literal["auto", "sft"]


@dataclass(frozen=True)
class TableRows(Sequence[Answered]):
    """The rows of a table, each read when it is asked for; of pairs the chosen side."""

    table: RowTable[VLMPair]

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Answered: ...
    @overload
    def __getitem__(self, index: slice) -> list[Answered]: ...
    def __getitem__(self, index: int | slice) -> Answered | list[Answered]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        row = self.table[index]
        try:
            return Answered.of(row)
        except ValueError as error:
            why = str(error).removeprefix(f"{row.sample_id}: ")
            return Answered(row.sample_id, row.prompt, row.chosen, unusable=why)

    @property
    def fingerprint(self) -> str:
        """Changes with the files and the choice of rows."""
        return self.table.fingerprint

    def __str__(self) -> str:
        return str(self.table.report)


@dataclass(frozen=True)
class PictureRows(Sequence[Answered]):
    """The pictures in ``folder`` with one request each and no response yet; the sample id is the path below it."""

    folder: Path
    names: tuple[str, ...]
    request: str

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Answered: ...
    @overload
    def __getitem__(self, index: slice) -> list[Answered]: ...
    def __getitem__(self, index: int | slice) -> Answered | list[Answered]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        name = self.names[index]
        picture = ImageBytes(name, path=self.folder / name)
        return Answered(name, (Message("user", (ImagePart(0), self.request)),), "", (picture,))

    @property
    def fingerprint(self) -> str:
        """Changes with the names and sizes of the files and with the request."""
        return hashed(self.request, *((name, (self.folder / name).stat().st_size) for name in self.names))

    def __str__(self) -> str:
        return f"{len(self)} pictures in {self.folder}."


def open_rows(path: str, *, source: str = "auto", images: str | None = None, max_rows: int | None = None) -> TableRows:
    """Rows of a file, folder, glob or hub id: preference data in any of ``VLM_SOURCES`` (the chosen side), or rows for
    supervised tuning (``sft``). ValueError for what is neither, or where not one of the first pictures can be opened.
    """
    if source not in ("sft", *VLM_SOURCES):
        raise ValueError(f"source={source!r}: choose one of sft, {', '.join(VLM_SOURCES)}")
    if source == "auto":
        found = detect_vlm_source(path)
        source = "sft" if found is None else found.source
    fields = {"source": source, "path": path, "images": images, "max_rows": max_rows}
    config = DataConfig.model_validate({**fields, "ties": "soft", "max_corrupt": 1.0})
    table = open_sft(config) if source == "sft" else VLM_SOURCES[source](config)
    if not len(table):
        raise ValueError(f"{path}: no usable row. {table.report}")
    rows = TableRows(table)
    _look_at(rows[:LOOKED_AT], path)
    return rows


def open_pictures(folder: str | Path, request: str = DESCRIBE, *, max_rows: int | None = None) -> PictureRows:
    """Every picture below ``folder``, in name order. ValueError where there is none, or the request is empty."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"{folder} is no folder of pictures")
    if not request.strip():
        raise ValueError("the request for a response is empty; say what the model is asked about each picture")
    endings = {ending for ending, form in Image.registered_extensions().items() if form in FORMATS}
    found = (file for file in root.rglob("*") if file.suffix.lower() in endings and file.is_file())
    names = sorted(file.relative_to(root).as_posix() for file in found)
    if not names:
        raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(endings))})")
    rows = PictureRows(root, tuple(names[:max_rows]), request)
    _look_at(rows[:LOOKED_AT], str(folder))
    return rows


def _look_at(rows: Sequence[Answered], path: str) -> None:
    """ValueError where the pictures of none of ``rows`` can be opened: the folder that paths start from is wrong."""
    problems = []
    for row in rows:
        try:
            for image in row.images:
                decode(image)
        except UnreadableImage as error:
            problems.append(str(error))
    if rows and len(problems) == len(rows):
        raise ValueError(f"{path}: not one of the first {len(rows)} rows' pictures can be opened: {problems[0]}")
