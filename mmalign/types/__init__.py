"""The objects that parts of mmalign hand to each other.

A *source* makes rows (:class:`PreferencePair`, :class:`Ranking`, :class:`Unary` of image generators; :class:`VLMPair`
of vision-language models), a family's encoder turns rows into a :class:`Batch`, an adapter turns a batch into
:class:`Scores`, and an objective turns scores into a loss. One currency runs through all of them: a *score* (``logp``)
is one number per sample in at least fp32, higher = the policy likes the sample more.
"""

from typing import Literal

from mmalign.types.rows import ImageBytes, PreferencePair, Ranking, Unary
from mmalign.types.scores import Batch, BranchScores, GroupScores, Scores
from mmalign.types.vlm import (
    ROLES,
    Clip,
    ImagePart,
    Message,
    Part,
    Role,
    TokenWeights,
    Video,
    VideoPart,
    VLMPair,
    without_pictures,
)

CHOSEN = "chosen"
REJECTED = "rejected"
CANDIDATES = "candidates"
SAMPLE = "sample"

Row = PreferencePair | Ranking | Unary
AnyRow = Row | VLMPair
RowKind = Literal["pair", "ranking", "unary", "vlm_pair"]

__all__ = [
    "CANDIDATES",
    "CHOSEN",
    "REJECTED",
    "ROLES",
    "SAMPLE",
    "AnyRow",
    "Batch",
    "BranchScores",
    "Clip",
    "GroupScores",
    "ImageBytes",
    "ImagePart",
    "Message",
    "Part",
    "PreferencePair",
    "Ranking",
    "Role",
    "Row",
    "RowKind",
    "Scores",
    "TokenWeights",
    "Unary",
    "VLMPair",
    "Video",
    "VideoPart",
    "without_pictures",
]
