"""MIA-DPO's JSON (arXiv 2410.17637): several pictures in ``image``, ``prompt`` with ``<image-placeholder>`` marks,
``chosen``, ``rejected`` and the right answer ``gt``, which stays in ``extras``.
"""

from collections.abc import Mapping
from typing import Any

from mmalign.data.table import RowTable
from mmalign.training.config import DataConfig
from mmalign.types import VLMPair
from mmalign.vlm_data.conversations import drafted
from mmalign.vlm_data.drafts import Draft, Marks, labels_in, listed, rest_of, text_in
from mmalign.vlm_data.opening import Format, open_format

NEEDED = ("image", "prompt", "chosen", "rejected")
MARK = "<image-placeholder>"


def parse(fields: Mapping[str, Any]) -> list[Draft]:
    """One pair."""
    prompt, chosen, rejected = (text_in(fields, name) for name in NEEDED[1:])
    images, extras = listed(fields, "image"), rest_of(fields, *NEEDED)
    marks = Marks(image=MARK)
    return [
        drafted([("user", prompt)], chosen, rejected, images=images, marks=marks, extras=extras, **labels_in(fields))
    ]


def open_mia_dpo(config: DataConfig) -> RowTable[VLMPair]:
    """Index JSON or JSONL; picture paths start from ``data.images`` or the file's folder."""
    return open_format(Format("mia_dpo", parse), config)
