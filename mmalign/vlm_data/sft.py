"""Rows for supervised tuning, one good response each: what negatives are made from.

LLaVA's ``conversations`` and the hub's ``messages`` that end with the assistant's turn (earlier turns are the prompt),
or a question beside its answer. Pictures as ``image`` or ``images``. They have no rejected side, so this is no source
of ``data:``; in a table they stand with the response on both sides.
"""

from collections.abc import Mapping
from typing import Any

from mmalign.data.table import RowTable
from mmalign.training.config import DataConfig
from mmalign.types import VLMPair
from mmalign.vlm_data import trl
from mmalign.vlm_data.conversations import SPEAKERS, drafted, turns_in
from mmalign.vlm_data.drafts import Broken, Draft, listed, rest_of, text_in
from mmalign.vlm_data.opening import Format, open_format

QUESTIONS = ("question", "prompt", "instruction", "query")
ANSWERS = ("response", "answer", "caption", "output", "chosen")
_MEDIA = ("image", "images", "video", "videos")


def parse(fields: Mapping[str, Any]) -> list[Draft]:
    """One row."""
    if fields.get("conversations") is not None:
        return [_conversation(fields)]
    media = {name: fields[name] for name in _MEDIA if fields.get(name) is not None}
    if fields.get("messages") is not None:
        messages = fields["messages"]
        if not isinstance(messages, list) or len(messages) < 2:
            raise Broken("messages must be a list that ends with the user's turn and the assistant's")
        used = {"prompt": messages[:-1], "chosen": [messages[-1]], "rejected": [messages[-1]]}
        return trl.parse({**rest_of(fields, *_MEDIA, "messages"), **used, **media})
    question, answer = (_first(fields, names) for names in (QUESTIONS, ANSWERS))
    text = text_in(fields, answer)
    used = {"prompt": text_in(fields, question), "chosen": text, "rejected": text}
    return trl.parse({**rest_of(fields, *_MEDIA, question, answer), **used, **media})


def open_sft(config: DataConfig) -> RowTable[VLMPair]:
    """Index JSON, JSONL or parquet of such rows; picture paths start from ``data.images`` or the file's folder."""
    return open_format(Format("sft", parse), config)


def _conversation(fields: Mapping[str, Any]) -> Draft:
    turns = turns_in(fields, "conversations")
    if len(turns) < 2 or SPEAKERS.get(turns[-1][0]) != "assistant":
        raise Broken("conversations must end with the assistant's turn, which is the response")
    images, videos = listed(fields, "image", "images"), listed(fields, "video", "videos")
    extras, answer = rest_of(fields, *_MEDIA, "conversations"), turns[-1][1]
    return drafted(turns[:-1], answer, answer, images=images, videos=videos, extras=extras)


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> str:
    found = [name for name in names if fields.get(name) is not None]
    if not found:
        raise Broken(
            f"has {', '.join(sorted(fields))}; wanted are conversations, messages, or a question "
            f"({', '.join(QUESTIONS)}) and an answer ({', '.join(ANSWERS)})"
        )
    return found[0]
