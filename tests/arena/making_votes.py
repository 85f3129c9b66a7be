"""Sides, battles and whole simulated arenas for the tests."""

import hashlib
from pathlib import Path

import numpy as np

from mmalign.arena.types import Ballot, Battle, Receipt, Side, Vote


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def side(model: str = "base", prompt: str = "a red circle", picture: str | None = None, **provenance) -> Side:
    """A side whose picture is a name only."""
    name = picture or f"{model}/{prompt}"
    return Side(model=model, prompt=prompt, file=f"{name}.png", image_sha256=digest(name), **provenance)


def battle(*models: str, prompt: str = "a red circle", **fields) -> Battle:
    return Battle(tuple(side(model, prompt) for model in models or ("base", "aligned")), **fields)


def saved_side(folder: Path, model: str, prompt: str, *, seed: int) -> Side:
    """A side whose picture is a real PNG in ``folder``."""
    from tests.data.making_data import png

    file = folder / f"{digest(f'{model}{prompt}{seed}')[:12]}.png"
    file.write_bytes(png(seed=seed))
    made = Side.of_file(file, model=model, prompt=prompt, seed=seed)
    return Side(**{**made.as_json(), "file": file.name})


def a_vote(fight: Battle, voter: str, ballot: Ballot, *, number: int = 0, exported: bool = False) -> Vote:
    """A vote that no store has seen."""
    kept = Battle(
        fight.sides, fight.seed, fight.order, catch=fight.catch, catch_of=fight.catch_of, id=f"battle{number}"
    )
    return Vote(Receipt(f"receipt{number}", f"battle{number}", voter, float(number)), kept, ballot, exported)


def davidson_outcomes(
    generator: np.random.Generator, difference: np.ndarray, log_tie: float, left_bonus: np.ndarray | float = 0.0
) -> np.ndarray:
    """0 (first wins), 1 (second wins) or 2 (tie): P proportional to e^(d/2), e^(-d/2), nu, where d has the bonus."""
    d = difference + left_bonus
    weights = np.stack([np.exp(d / 2), np.exp(-d / 2), np.full_like(d, np.exp(log_tie))])
    uniform = generator.random(len(d)) * weights.sum(0)
    return np.where(uniform < weights[0], 0, np.where(uniform < weights[0] + weights[1], 1, 2))
