"""Rejected responses without a judge: swapped words, answers continued blindly, and answers that lean on the picture.

``GENERATORS`` has every method by its name. ``make_negatives(name, method_of(name, settings), rows, out, ...)`` runs
one over ``Answered`` rows, can be interrupted, and writes canonical VLM rows with their provenance.
"""

from mmalign.negatives.answers import Answered, without_pictures
from mmalign.negatives.building import Built, Made, Make, build, generator_of, seed_of
from mmalign.negatives.generators import GENERATORS, Origin, defaults_of, make_negatives, method_of
from mmalign.negatives.kit import Kit, Method
from mmalign.negatives.m3id import M3ID, guided
from mmalign.negatives.m3id_pairs import m3id_pair
from mmalign.negatives.methods import dropout_ntp
from mmalign.negatives.reading import open_pictures, open_rows
from mmalign.negatives.speaking import Decoding, Speaker
from mmalign.negatives.text_swaps import ENGLISH, Swap, Vocabulary, playground_vocabulary, swap, swapped_pair

__all__ = [
    "ENGLISH",
    "GENERATORS",
    "M3ID",
    "Answered",
    "Built",
    "Decoding",
    "Kit",
    "Made",
    "Make",
    "Method",
    "Origin",
    "Speaker",
    "Swap",
    "Vocabulary",
    "build",
    "defaults_of",
    "dropout_ntp",
    "generator_of",
    "guided",
    "m3id_pair",
    "make_negatives",
    "method_of",
    "open_pictures",
    "open_rows",
    "playground_vocabulary",
    "seed_of",
    "swap",
    "swapped_pair",
    "without_pictures",
]
