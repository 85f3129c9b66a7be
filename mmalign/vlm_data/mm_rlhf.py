"""MM-RLHF's ``dpo_pairs.jsonl`` (arXiv 2502.10391): ``image`` or ``video``, ``prompt``, ``chosen``, ``rejected``.

The reasons of both sides and the cached log-probabilities and factor of its trainer stay in ``extras``. A picture whose
name ends like a video's is one.
"""

from collections.abc import Mapping
from typing import Any

from mmalign.data.table import RowTable
from mmalign.training.config import DataConfig
from mmalign.types import VLMPair
from mmalign.vlm_data.conversations import drafted
from mmalign.vlm_data.drafts import Draft, labels_in, listed, rest_of, text_in
from mmalign.vlm_data.media import is_video
from mmalign.vlm_data.opening import Format, open_format

NEEDED = ("prompt", "chosen", "rejected")
TELLING = ("chosen_reason", "rejected_reason", "reference_chosen_logp", "ls_factor", "video")


def parse(fields: Mapping[str, Any]) -> list[Draft]:
    """One pair."""
    prompt, chosen, rejected = (text_in(fields, name) for name in NEEDED)
    shown, videos = listed(fields, "image"), listed(fields, "video")
    images = [reference for reference in shown if not is_video(reference)]
    videos += [reference for reference in shown if is_video(reference)]
    extras = rest_of(fields, *NEEDED, "image", "video")
    turns = [("user", prompt)]
    return [drafted(turns, chosen, rejected, images=images, videos=videos, extras=extras, **labels_in(fields))]


def open_mm_rlhf(config: DataConfig) -> RowTable[VLMPair]:
    """Index JSONL or JSON; paths start from ``data.images`` or the file's folder."""
    return open_format(Format("mm_rlhf", parse), config)
