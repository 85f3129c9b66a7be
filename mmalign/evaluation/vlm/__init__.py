"""Hallucination benchmarks for vision-language models, computed here and offline: POPE, CHAIR, AMBER.

Each follows its official script exactly under ``official`` rules, and shows stricter rules beside them where those
give something away. Base and aligned are compared on the same questions, with intervals that resample pictures.
"""

from mmalign.evaluation.vlm.amber import evaluate_amber
from mmalign.evaluation.vlm.amber_files import read_amber
from mmalign.evaluation.vlm.chair import chair_judge, evaluate_chair
from mmalign.evaluation.vlm.pope import evaluate_pope, read_pope
from mmalign.evaluation.vlm.result import VLMEvaluation
from mmalign.evaluation.vlm.text_tools import find_tools

__all__ = [
    "VLMEvaluation",
    "chair_judge",
    "evaluate_amber",
    "evaluate_chair",
    "evaluate_pope",
    "find_tools",
    "read_amber",
    "read_pope",
]
