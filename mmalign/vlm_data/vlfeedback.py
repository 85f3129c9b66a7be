"""VLFeedback (arXiv 2312.10665): ``prompt``, a picture, and ``completions`` rated by a model, as pairs.

A completion's score is the mean of its ratings for helpfulness, visual faithfulness and ethical considerations. Every
two completions are a pair, with the difference of their scores as ``margin`` and equal scores as a tie;
``data.as: pairs`` with ``data.pairs: best_vs_worst`` makes one pair of each record. Completions without all three
ratings, or without text, are left out and counted.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from mmalign.data.table import RowTable
from mmalign.training.config import DataConfig
from mmalign.types import VLMPair
from mmalign.vlm_data.conversations import drafted
from mmalign.vlm_data.drafts import Broken, Draft, listed, rest_of, shortened, text_in
from mmalign.vlm_data.opening import Format, open_format

ASPECTS = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")
_USED = ("prompt", "image", "images", "img_path", "completions", "models")


class Completion(NamedTuple):
    """A response, who wrote it, and its mean rating."""

    response: str
    model: str | None
    score: float


def parse(fields: Mapping[str, Any], *, best_vs_worst: bool = False) -> list[Draft]:
    """Every pair of rated completions, or the best against the worst."""
    prompt, images = text_in(fields, "prompt"), listed(fields, "image", "images", "img_path")
    given = _as_rows(fields.get("completions"))
    rated = [completion for entry in given if (completion := _completion(entry)) is not None]
    if len(rated) < 2:
        raise Broken(f"{len(rated)} of {len(given)} completions have a text and all ratings; a pair needs two")
    pairs = list(combinations(rated, 2))
    if best_vs_worst:
        pairs = [(max(rated, key=lambda one: one.score), min(rated, key=lambda one: one.score))]
    extras = {**rest_of(fields, *_USED), "unrated_completions": len(given) - len(rated)}
    drafts = []
    for one, other in pairs:
        better, worse = (one, other) if one.score >= other.score else (other, one)
        models = {"chosen_model": better.model, "rejected_model": worse.model}
        drafts.append(
            drafted(
                [("user", prompt)],
                better.response,
                worse.response,
                images=images,
                preference=0.5 if better.score == worse.score else 1.0,
                margin=better.score - worse.score,
                extras={**extras, **models},
            )
        )
    return drafts


def _as_rows(completions: Any) -> Sequence[Any]:
    """A list of objects; the ``datasets`` library stores it as an object of lists."""
    if isinstance(completions, Mapping):
        columns = {name: values for name, values in completions.items() if isinstance(values, list)}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if not isinstance(completions, list):
        raise Broken(f"completions={shortened(completions)} must be a list")
    return completions


def _completion(entry: Any) -> Completion | None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("response"), str) or not entry["response"].strip():
        return None
    annotations = entry.get("annotations") or {}
    ratings = [_rating(annotations.get(aspect)) for aspect in ASPECTS]
    if any(math.isnan(rating) for rating in ratings):
        return None
    return Completion(entry["response"], entry.get("model"), sum(ratings) / len(ratings))


def _rating(annotation: Any) -> float:
    """A rating as a number; NaN where the judge gave none ("N/A")."""
    try:
        return float(annotation["Rating"]) if isinstance(annotation, Mapping) else math.nan
    except (KeyError, TypeError, ValueError):
        return math.nan


def open_vlfeedback(config: DataConfig) -> RowTable[VLMPair]:
    """Index parquet, JSON or JSONL with rated completions."""
    best = config.pairs == "best_vs_worst"
    parsers = {True: _best, False: parse}
    notes = {"come from records with unrated completions, which were left out": _lacks}
    return open_format(Format("vlfeedback", parsers[best], rated=True, notes=notes), config)


def _best(fields: Mapping[str, Any]) -> list[Draft]:
    return parse(fields, best_vs_worst=True)


def _lacks(draft: Draft) -> bool:
    return draft.extras["unrated_completions"] > 0
