"""Votes by the playground's oracle, for tests and screenshots that need many."""

import random
from collections.abc import Sequence

from PIL import Image

from app.arena import Arena, Revealed, read_ballot
from mmalign.playground.oracle import judge


def choice(prompt: str, images: Sequence[Image.Image]) -> str:
    """``left``, ``right`` or ``tie``, by which share of the prompt's claims each picture keeps."""
    left, right = (judge(image, prompt).share for image in images)
    return "tie" if left == right else "left" if left > right else "right"


def oracle_votes(
    arena: Arena, voters: Sequence[str], number: int, *, slips: float = 0.0, rng: random.Random
) -> list[Revealed]:
    """``number`` votes of ``voters`` in turn; the share ``slips`` of them says anything."""
    said = []
    for place in range(number):
        token = voters[place % len(voters)]
        shown = arena.next(token)
        better = rng.choice(["left", "right", "tie"]) if rng.random() < slips else choice(shown.prompt, shown.images)
        ballot = read_ballot(better, None, None, [], "", 2 + 4 * rng.random())
        said.append(arena.vote(token, shown.battle_id, ballot))
    return said
