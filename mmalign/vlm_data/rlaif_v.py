"""RLAIF-V: ``image``, ``question``, ``chosen``, ``rejected`` (arXiv 2405.17220), from parquet or JSON.

Its cached ``logps`` of a reference, if there, stay in ``extras``; mmalign computes its own.
"""

from collections.abc import Mapping
from typing import Any

from mmalign.data.table import RowTable
from mmalign.training.config import DataConfig
from mmalign.types import VLMPair
from mmalign.vlm_data.conversations import drafted
from mmalign.vlm_data.drafts import Draft, labels_in, listed, rest_of, text_in
from mmalign.vlm_data.opening import Format, open_format

NEEDED = ("question", "chosen", "rejected")


def parse(fields: Mapping[str, Any]) -> list[Draft]:
    """One pair."""
    question, chosen, rejected = (text_in(fields, name) for name in NEEDED)
    images = listed(fields, "image", "images")
    extras = rest_of(fields, *NEEDED, "image", "images")
    return [drafted([("user", question)], chosen, rejected, images=images, extras=extras, **labels_in(fields))]


def open_rlaif_v(config: DataConfig) -> RowTable[VLMPair]:
    """Index parquet or JSON in RLAIF-V's columns."""
    return open_format(Format("rlaif_v", parse), config)
