"""Rejected responses without a judge: swapped words, answers continued blindly, and answers that lean on the picture.

``build(rows, make, out, settings=...)`` runs a method over ``Answered`` rows, can be interrupted, and writes canonical
VLM rows with their provenance.
"""

from mmalign.negatives.answers import Answered, without_pictures
from mmalign.negatives.building import Built, build, generator_of, seed_of
from mmalign.negatives.m3id import M3ID, guided
from mmalign.negatives.speaking import Decoding, Speaker, dropout_ntp, m3id_pair
from mmalign.negatives.text_swaps import ENGLISH, Swap, Vocabulary, playground_vocabulary, swap, swapped_pair

__all__ = [
    "ENGLISH",
    "M3ID",
    "Answered",
    "Built",
    "Decoding",
    "Speaker",
    "Swap",
    "Vocabulary",
    "build",
    "dropout_ntp",
    "generator_of",
    "guided",
    "m3id_pair",
    "playground_vocabulary",
    "seed_of",
    "swap",
    "swapped_pair",
    "without_pictures",
]
