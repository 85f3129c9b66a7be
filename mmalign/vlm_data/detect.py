"""Which VLM format the files at a path are, and why."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmalign.data.detect import Detected
from mmalign.data.hub import is_hub_id, locate
from mmalign.data.shards import Shard
from mmalign.training.config import DataConfig
from mmalign.vlm_data import canonical, mdpo, mm_rlhf, ms_swift, povid, rlaif_v, video_salmonn
from mmalign.vlm_data.record_files import SUFFIXES, first_record

_MEDIA = ("image", "images", "img_path", "video", "videos", "rejected_images")


def detect_vlm_source(path: str, *, split: str | None = None, revision: str | None = None) -> Detected | None:
    """The key of ``VLM_SOURCES`` that reads ``path``; None where it is no data of vision-language models.

    Only the columns or the first record of the first file are looked at. Raises ValueError where nothing is there.
    """
    given = Path(path).expanduser()
    if given.suffix.lower() in SUFFIXES and given.is_file():
        return of_record(first_record(given), given.name)
    if given.is_file() and given.suffix.lower() != ".parquet":
        return None
    if given.is_dir() and next(given.rglob("*.parquet"), None) is None:
        return None
    if not is_hub_id(path) and "*" in path and not path.endswith(".parquet"):
        return None
    shard = Shard.at(locate(DataConfig(source="auto", path=path, split=split, revision=revision))[0])
    if canonical.is_canonical(shard.schema, shard.path):
        return Detected("vlm_canonical", f"the footer of {shard.name} says {canonical.FORMAT}")
    light = [field.name for field in shard.schema if "binary" not in str(field.type)]
    record = {**dict.fromkeys(shard.schema.names, True), **(shard.first_row(light) if light else {})}
    return of_record(record, shard.name)


def of_record(record: Any, name: str) -> Detected | None:
    """The format of one record, by its fields."""
    if not isinstance(record, Mapping):
        return None
    has = {key for key, value in record.items() if value is not None}
    found = _by_fields(record, has)
    if found is None:
        return None
    source, told = found
    return Detected(source, f"the first row of {name} has {told}")


def _by_fields(record: Mapping[str, Any], has: set[str]) -> tuple[str, str] | None:
    if "completions" in has and {"prompt"} <= has:
        return "vlfeedback", "prompt and completions"
    if set(povid.NEEDED) <= has:
        return "povid", "conversations and rejected_conversations"
    if "messages" in has and set(ms_swift.TELLING) & has:
        return "ms_swift", f"messages and {', '.join(sorted(set(ms_swift.TELLING) & has))}"
    if set(mdpo.NEEDED) <= has:
        return "mdpo", ", ".join(mdpo.NEEDED)
    if set(rlaif_v.NEEDED) <= has and has & set(_MEDIA):
        return "rlaif_v", f"{', '.join(rlaif_v.NEEDED)} and a picture"
    if {"text", "image"} <= has and _is_rlhf_v(record["text"]):
        return "rlhf_v", "a picture, and text that is JSON with question, chosen and rejected"
    if {"conversations", "messages"} & has:
        return _conversation(record, has)
    if {"chosen", "rejected"} <= has:
        return _responses(record, has)
    return None


def _conversation(record: Mapping[str, Any], has: set[str]) -> tuple[str, str] | None:
    turns = record.get("conversations", record.get("messages"))
    speakers = {turn.get("from") for turn in turns if isinstance(turn, Mapping)} if isinstance(turns, list) else set()
    if speakers & set(video_salmonn.REJECTED):
        return "video_salmonn", "conversations in which a rejected answer is a turn"
    if {"output_1", "output_2", "preference"} <= has:
        return "llava", "conversations, output_1, output_2 and preference"
    if {"chosen", "rejected"} <= has:
        told = "conversations, chosen and rejected"
        return ("llava", told) if isinstance(record["chosen"], str) else ("llama_factory", f"{told} turns")
    return None


def _responses(record: Mapping[str, Any], has: set[str]) -> tuple[str, str] | None:
    messages = any(isinstance(record[name], list | Mapping) for name in ("prompt", "chosen") if name in has)
    if messages:
        return "trl", "prompt, chosen and rejected as messages"
    if not has & set(_MEDIA) or "prompt" not in has or not isinstance(record["chosen"], str):
        return None
    if isinstance(record.get("image"), list) or "<image-placeholder>" in str(record["prompt"]):
        return "mia_dpo", "prompt, chosen, rejected and several pictures"
    if set(mm_rlhf.TELLING) & has:
        return "mm_rlhf", f"prompt, chosen, rejected and {', '.join(sorted(set(mm_rlhf.TELLING) & has))}"
    return "trl", "prompt, chosen, rejected and a picture"


def _is_rlhf_v(text: Any) -> bool:
    try:
        said = json.loads(text) if isinstance(text, str) else text
    except json.JSONDecodeError:
        return False
    return isinstance(said, Mapping) and {"question", "chosen", "rejected"} <= said.keys()
