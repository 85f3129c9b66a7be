"""RLHF-V: ``image``, and ``text`` that holds JSON with ``question``, ``chosen`` and ``rejected`` (arXiv 2312.00849).

Its rejected responses were corrected by people piece by piece, so ``segments.changed_spans`` finds the pieces that
dense DPO weighs more.
"""

import json
from collections.abc import Mapping
from typing import Any

from mmalign.data.table import RowTable
from mmalign.training.config import DataConfig
from mmalign.types import VLMPair
from mmalign.vlm_data.conversations import drafted
from mmalign.vlm_data.drafts import Broken, Draft, labels_in, listed, rest_of, shortened, text_in
from mmalign.vlm_data.opening import Format, open_format


def parse(fields: Mapping[str, Any]) -> list[Draft]:
    """One pair. Broken where the text is no JSON object with the three texts."""
    text = fields.get("text")
    try:
        said = json.loads(text) if isinstance(text, str) else text
    except json.JSONDecodeError as error:
        raise Broken(f"text={shortened(text)} must be JSON ({error})") from error
    if not isinstance(said, Mapping):
        raise Broken(f"text={shortened(text)} must be JSON of an object with question, chosen and rejected")
    question, chosen, rejected = (text_in(said, name) for name in ("question", "chosen", "rejected"))
    images = listed(fields, "image", "images")
    extras = rest_of(fields, "text", "image", "images")
    return [drafted([("user", question)], chosen, rejected, images=images, extras=extras, **labels_in(fields))]


def open_rlhf_v(config: DataConfig) -> RowTable[VLMPair]:
    """Index parquet or JSON in RLHF-V's columns."""
    return open_format(Format("rlhf_v", parse), config)
