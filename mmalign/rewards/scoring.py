"""Scoring a folder of pictures with several rewards in one pass: a picture is decoded once, a job can be killed."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.caches.files import write_json, written_whole
from mmalign.data.decoding import UnreadableImage, decode
from mmalign.rewards.journal import Journal
from mmalign.rewards.prompt_files import Scored
from mmalign.rewards.protocol import RewardModel, score_many
from mmalign.types import ImageBytes

FORMATS = (".jsonl", ".parquet")


@dataclass(frozen=True)
class ScoredFolder:
    """What was scored: ``rows`` in the given order, how many were there from an earlier attempt, and what is broken.

    ``prompts_cut``: reward -> how many prompts were longer than it reads.
    """

    rows: Sequence[Mapping[str, Any]]
    resumed: int
    prompts_cut: Mapping[str, int]

    @property
    def broken(self) -> list[Mapping[str, Any]]:
        """Rows whose picture could not be read; they have ``error`` and no score."""
        return [row for row in self.rows if row["error"] is not None]


def score_folder(
    rewards: Sequence[RewardModel],
    folder: Path,
    pictures: Sequence[Scored],
    out: Path,
    *,
    batch_size: int = 32,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScoredFolder:
    """Score ``pictures`` of ``folder`` and write ``out`` (.jsonl or .parquet) and ``out.info.json``, each whole.

    A row has image, prompt, one column a reward and error. Pictures that cannot be read get an error and no score.
    What is done is kept in ``out.unfinished``; the same call continues it. ``settings`` (device, dtype, ...) must then
    be the same. ``progress(done, total)`` is called after every batch. Raises ValueError for a suffix other than the
    two, names of rewards that clash, and an ``out`` that exists.
    """
    check_out(out)
    names = [reward.name for reward in rewards]
    taken = {"image", "prompt", "error"}
    if len({*names, *taken}) != len(names) + len(taken):
        raise ValueError(f"rewards need different names, other than {', '.join(sorted(taken))}; got {', '.join(names)}")
    about = {reward.name: _about(reward) for reward in rewards}
    job = {"rewards": about, "pictures": _digest(folder, pictures), "settings": dict(settings or {})}
    journal = Journal(out, job)
    resumed = len(journal.rows)
    try:
        report = progress or (lambda *_: None)
        report(resumed, len(pictures))
        for batch, decoded in decoded_batches(folder, pictures[resumed:], batch_size):
            journal.add(_score(rewards, batch, decoded))
            report(len(journal.rows), len(pictures))
    finally:
        journal.close()
    cut = {reward.name: prompts_cut(reward, [picture.prompt for picture in pictures]) for reward in rewards}
    result = ScoredFolder(journal.rows, resumed, cut)
    broken = [{"image": row["image"], "error": row["error"]} for row in result.broken]
    _write(out, result.rows, names)
    info = {**job, "count": len(pictures), "prompts_cut": cut, "broken": broken}
    write_json(out.with_name(out.name + ".info.json"), info)
    journal.remove()
    return result


def check_out(out: Path) -> None:
    """ValueError where scores cannot be written to ``out``: unknown suffix, or a file that is there already."""
    if out.suffix not in FORMATS:
        raise ValueError(f"--out {out} must end in {' or '.join(FORMATS)}")
    if out.exists():
        raise ValueError(f"--out {out} exists and is not overwritten; give another name or delete it")


def _about(reward: RewardModel) -> dict[str, Any]:
    return {
        "version": reward.version,
        "scale": reward.scale,
        "prompt_limit": reward.prompt_limit,
        "licence": reward.licence,
        "source": reward.source,
    }


def prompts_cut(reward: RewardModel, prompts: Sequence[str]) -> int:
    """How many of the different ``prompts`` are longer than what ``reward`` reads; 0 where it cannot tell."""
    tokens = getattr(reward, "prompt_tokens", None)
    if tokens is None or reward.prompt_limit is None:
        return 0
    return sum(length > reward.prompt_limit for length in tokens(list(dict.fromkeys(prompts))))


def _digest(folder: Path, pictures: Sequence[Scored]) -> str:
    """Names, sizes and times of change of the pictures, and their prompts."""
    marks = []
    for picture in pictures:
        status = (folder / picture.image).stat()
        marks.append([*picture, status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()


def decoded_batches(
    folder: Path, pictures: Sequence[Scored], batch_size: int
) -> Iterator[tuple[Sequence[Scored], list[Image.Image | UnreadableImage]]]:
    """Batches with their pictures, or what is wrong with them; the next batch is decoded while this one is scored."""
    batches = [pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size)]
    with ThreadPoolExecutor(max_workers=4, thread_name_prefix="decode") as pool:

        def begin(number: int) -> list[Future[Image.Image | UnreadableImage]]:
            batch = batches[number] if number < len(batches) else []
            return [pool.submit(_open, folder, picture.image) for picture in batch]

        coming = begin(0)
        for number, batch in enumerate(batches):
            now, coming = coming, begin(number + 1)
            yield batch, [future.result() for future in now]


def _open(folder: Path, image: str) -> Image.Image | UnreadableImage:
    try:
        return decode(ImageBytes(origin=image, path=folder / image))
    except UnreadableImage as error:
        return error


def _score(
    rewards: Sequence[RewardModel], batch: Sequence[Scored], decoded: Sequence[Image.Image | UnreadableImage]
) -> list[dict[str, Any]]:
    good = [index for index, image in enumerate(decoded) if isinstance(image, Image.Image)]
    images = [image for image in decoded if isinstance(image, Image.Image)]
    scores = score_many(rewards, [batch[index].prompt for index in good], images) if good else {}
    numbers = {
        name: dict(zip(good, values.detach().double().cpu().tolist(), strict=True)) for name, values in scores.items()
    }
    _refuse_not_finite(numbers, batch)
    return [
        {
            **picture._asdict(),
            **{reward.name: numbers.get(reward.name, {}).get(index) for reward in rewards},
            "error": image.reason if isinstance(image, UnreadableImage) else None,
        }
        for index, (picture, image) in enumerate(zip(batch, decoded, strict=True))
    ]


def _refuse_not_finite(numbers: Mapping[str, Mapping[int, float]], batch: Sequence[Scored]) -> None:
    for name, values in numbers.items():
        wrong = next((index for index, value in values.items() if not math.isfinite(value)), None)
        if wrong is not None:
            raise RuntimeError(
                f"reward {name!r} gives {values[wrong]} for {batch[wrong].image} and {batch[wrong].prompt!r}; "
                "in float16 or bfloat16, try float32"
            )


def _write(out: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    with written_whole(out) as partial:
        if out.suffix == ".jsonl":
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            partial.write_text("".join(lines), encoding="utf-8")
            return
        import pyarrow
        import pyarrow.parquet

        text, number = pyarrow.string(), pyarrow.float64()
        kinds = [("image", text), ("prompt", text), *((name, number) for name in names), ("error", text)]
        table = pyarrow.Table.from_pylist([dict(row) for row in rows], schema=pyarrow.schema(kinds))
        pyarrow.parquet.write_table(table, partial)
