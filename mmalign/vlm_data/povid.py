"""POVID, CSR and Re-Align: LLaVA's conversations and, as long, ``rejected_conversations``; ``image`` a path or paths.

POVID: arXiv 2402.11411. CSR: 2405.14622. Re-Align (2502.13146) adds ``retrieved_image``, the picture of its third
branch: rows then bring their own pictures for ``chosen@retrieved``. Conversations may differ in their last turn only.
"""

from collections.abc import Mapping
from typing import Any

from mmalign.data.table import RowTable
from mmalign.training.config import DataConfig
from mmalign.types import VLMPair
from mmalign.vlm_data.conversations import drafted, last_answers, turns_in
from mmalign.vlm_data.drafts import Draft, labels_in, listed, rest_of
from mmalign.vlm_data.opening import Format, open_format

NEEDED = ("conversations", "rejected_conversations")
_USED = (*NEEDED, "image", "images", "video", "videos", "retrieved_image")


def parse(fields: Mapping[str, Any]) -> list[Draft]:
    """One pair."""
    turns, chosen, rejected = last_answers(turns_in(fields, NEEDED[0]), turns_in(fields, NEEDED[1]))
    retrieved = listed(fields, "retrieved_image")
    return [
        drafted(
            turns,
            chosen,
            rejected,
            images=listed(fields, "image", "images"),
            videos=listed(fields, "video", "videos"),
            branch_images={"retrieved": retrieved} if retrieved else {},
            extras=rest_of(fields, *_USED),
            **labels_in(fields),
        )
    ]


def open_povid(config: DataConfig) -> RowTable[VLMPair]:
    """Index JSON or JSONL with rejected conversations; picture paths start from ``data.images``."""
    return open_format(Format("povid", parse), config)
