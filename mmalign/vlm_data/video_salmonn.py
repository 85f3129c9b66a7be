"""video-SALMONN 2 (arXiv 2506.15220): ``video`` (and ``audio``), and both answers as turns of ``conversations``.

Speakers ``human``; ``gpt`` or ``chosen``; ``reject_gpt`` or ``reject``; ``gt``, a reference caption, which stays in
``extras`` as ``gold``. Paths of audio stay in ``extras``: models do not hear it here, and the report says so.
"""

from collections.abc import Mapping
from typing import Any

from mmalign.data.table import RowTable
from mmalign.training.config import DataConfig
from mmalign.types import VLMPair
from mmalign.vlm_data.conversations import drafted, turns_in
from mmalign.vlm_data.drafts import IMAGE_MARK, VIDEO_MARK, Broken, Draft, labels_in, listed, rest_of
from mmalign.vlm_data.opening import Format, open_format

CHOSEN, REJECTED, GOLD = ("gpt", "chosen"), ("reject_gpt", "reject", "rejected"), "gt"


def parse(fields: Mapping[str, Any]) -> list[Draft]:
    """One pair."""
    turns = turns_in(fields, "conversations")
    rejected = [text for who, text in turns if who in REJECTED]
    gold = [text for who, text in turns if who == GOLD]
    prompt = [(who, text) for who, text in turns if who not in (*REJECTED, GOLD)]
    if len(rejected) != 1 or not prompt or prompt[-1][0] not in CHOSEN:
        heard = ", ".join(who for who, _ in turns)
        raise Broken(f"conversations: speakers are {heard}; wanted are human, one of {CHOSEN}, one of {REJECTED}")
    chosen = prompt.pop()[1]
    images, videos = listed(fields, "image", "images"), listed(fields, "video", "videos")
    if videos and not images:  # its first version marks a video with <image>
        prompt = [(who, text.replace(IMAGE_MARK, VIDEO_MARK)) for who, text in prompt]
    extras = rest_of(fields, "conversations", "image", "images", "video", "videos")
    extras |= {"gold": gold[0]} if gold else {}
    return [drafted(prompt, chosen, rejected[0], images=images, videos=videos, extras=extras, **labels_in(fields))]


def open_video_salmonn(config: DataConfig) -> RowTable[VLMPair]:
    """Index JSON or JSONL; paths start from ``data.images`` or the file's folder."""
    notes = {"name an audio track, which is kept in extras and not heard": _has_audio}
    return open_format(Format("video_salmonn", parse, notes=notes), config)


def _has_audio(draft: Draft) -> bool:
    return bool(draft.extras.get("audio") or draft.extras.get("use_audio"))
