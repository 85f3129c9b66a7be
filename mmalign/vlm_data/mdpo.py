"""mDPO's JSON (arXiv 2406.11839): ``img_path``, ``prompt`` in Vicuna's template, ``chosen``, ``rejected``.

The template is taken off again, because each model brings its own: system text and turns become messages.
"""

from collections.abc import Mapping
from typing import Any

from mmalign.data.table import RowTable
from mmalign.training.config import DataConfig
from mmalign.types import VLMPair
from mmalign.vlm_data.conversations import drafted, from_vicuna
from mmalign.vlm_data.drafts import Draft, labels_in, listed, rest_of, text_in
from mmalign.vlm_data.opening import Format, open_format

NEEDED = ("img_path", "prompt", "chosen", "rejected")


def parse(fields: Mapping[str, Any]) -> list[Draft]:
    """One pair."""
    prompt, chosen, rejected = (text_in(fields, name) for name in NEEDED[1:])
    images, extras = listed(fields, "img_path"), rest_of(fields, *NEEDED)
    return [drafted(from_vicuna(prompt), chosen, rejected, images=images, extras=extras, **labels_in(fields))]


def open_mdpo(config: DataConfig) -> RowTable[VLMPair]:
    """Index JSON or JSONL; picture paths start from ``data.images`` or the file's folder."""
    return open_format(Format("mdpo", parse), config)
