"""Pictures of one prompt together: from folders of ``mmalign generate``, of one or several models, or from rows."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmalign.data import RowTable
from mmalign.data.table import count, hashed
from mmalign.types import ImageBytes, PreferencePair, Ranking, Unary

MANIFEST = "manifest.jsonl"
SHOWN = 10


@dataclass(frozen=True)
class Candidates:
    """k pictures of one prompt. ``made_by``: what is known of each picture's making (model, seed, steps, file ...).

    ``extras``: what the data said of the row, people's own label included.
    """

    sample_id: str
    prompt: str
    images: tuple[ImageBytes, ...]
    made_by: tuple[Mapping[str, Any], ...]
    user_id: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Generations:
    """Everything that is to be labelled. ``fingerprint`` changes with prompts, files and their sizes."""

    groups: Sequence[Candidates]
    fingerprint: str
    described: str


def from_folders(folders: Sequence[Path]) -> Generations:
    """Pictures named by the manifests of ``folders`` (OUT, or OUT/base alone), grouped by prompt as they appear.

    ValueError for a folder without manifest, a line that is not one, a picture that is missing or named twice, and for
    two folders that hold the same model's picture of the same seed.
    """
    found: dict[str, list[tuple[Mapping[str, Any], Path]]] = {}
    seen: dict[Path, Path] = {}
    for folder in folders:
        lines = _manifest(folder)
        for line, file in lines:
            if file in seen:
                raise ValueError(f"{file} is named by {seen[file]} and by {folder}; give each picture once")
            seen[file] = folder
            found.setdefault(line["prompt"], []).append(({**line, "folder": folder.name}, file))
    groups, marks = [], []
    for number, (prompt, members) in enumerate(found.items()):
        images = tuple(ImageBytes(origin=str(file), path=file) for _, file in members)
        made_by = tuple({name: value for name, value in line.items() if name != "prompt"} for line, _ in members)
        groups.append(Candidates(f"prompt-{number:06d}", prompt, images, made_by))
        marks += [prompt, *((line["file"], file.stat().st_size, _digest(file)) for line, file in members)]
    held = f"{count(len(seen), 'picture')} of {count(len(groups), 'prompt')}"
    described = f"{held} from {', '.join(folder.name for folder in folders)}"
    return Generations(groups, hashed("generations", *marks), described)


def from_table(table: RowTable) -> Generations:
    """A group for each pair or ranking; unary rows of one prompt together. What the data said goes to ``extras``."""
    if table.kind != "unary":
        return Generations(_RowGroups(table), hashed("rows", table.fingerprint), str(table.report))
    members: dict[str, list[int]] = {}
    for index, prompt in enumerate(table.prompts):
        members.setdefault(prompt, []).append(index)
    return Generations(
        _UnaryGroups(table, list(members.values())), hashed("unary", table.fingerprint), str(table.report)
    )


@dataclass(frozen=True)
class _RowGroups(Sequence[Candidates]):
    """Lazy: a row is read when it is asked for."""

    table: RowTable

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        row = self.table[index]
        extras = {name: value for name, value in row.extras.items() if name != "swapped"}
        if isinstance(row, PreferencePair):
            extras |= {"data_preference": row.preference, "data_margin": row.margin}
            made_by: tuple[Mapping[str, Any], ...] = ({"data": "chosen"}, {"data": "rejected"})
        elif isinstance(row, Ranking):
            made_by = tuple({"data": label} for label in row.labels)
        else:
            raise ValueError(f"{row.sample_id}: a {type(row).__name__} holds no pictures of one prompt")
        return Candidates(row.sample_id, row.prompt, row.images, made_by, row.user_id, extras)


@dataclass(frozen=True)
class _UnaryGroups(Sequence[Candidates]):
    table: RowTable
    members: list[list[int]]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: Any) -> Any:
        rows = [self.table[place] for place in self.members[index]]
        images = tuple(image for row in rows for image in row.images)
        made_by = tuple({"data": row.desirable, "sample_id": row.sample_id} for row in rows if isinstance(row, Unary))
        return Candidates(rows[0].sample_id, rows[0].prompt, images, made_by, rows[0].user_id)


def _manifest(folder: Path) -> list[tuple[Mapping[str, Any], Path]]:
    """(line, file) of the pictures in ``folder`` that its manifest, or the one above it, names."""
    folder = folder.resolve()
    manifests = [path for path in (folder / MANIFEST, folder.parent / MANIFEST) if path.is_file()]
    if not manifests:
        raise ValueError(f"{folder} has no {MANIFEST}; give a folder made by mmalign generate, such as OUT/base")
    lines = []
    for number, text in enumerate(manifests[0].read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            file = manifests[0].parent / line["file"]
            if not isinstance(line["prompt"], str):
                raise TypeError
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{manifests[0]}, line {number}: needs file and prompt, got {text[:200]!r}") from None
        if not file.is_relative_to(folder):
            continue
        if not file.is_file():
            raise ValueError(f"{manifests[0]}, line {number}: {file} is missing")
        lines.append((line, file))
    if not lines:
        raise ValueError(f"{manifests[0]} names no picture in {folder}")
    return lines


def _digest(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
