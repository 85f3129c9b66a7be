"""Measuring whether alignment helped: paired win rates with honest intervals, per-attribute rates, diversity."""

from mmalign.evaluation.diversity import colour_distances, embedding_distances, measure_diversity, pixel_distances
from mmalign.evaluation.images import ImageEvaluation, evaluate_images
from mmalign.evaluation.scorers import ImageScorer, ImageScores, OracleScorer, RewardScorer, find_scorer
from mmalign.evaluation.winrate import Estimate, MeanDifference, WinRate, mean_difference, paired_win_rate

__all__ = [
    "Estimate",
    "ImageEvaluation",
    "ImageScorer",
    "ImageScores",
    "MeanDifference",
    "OracleScorer",
    "RewardScorer",
    "WinRate",
    "colour_distances",
    "embedding_distances",
    "evaluate_images",
    "find_scorer",
    "mean_difference",
    "measure_diversity",
    "paired_win_rate",
    "pixel_distances",
]
