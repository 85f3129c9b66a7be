"""Do voters agree with each other, and with themselves?"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmalign.arena.types import Vote

Judgement = tuple[str, int]  # voter; -1, 0 (tie) or 1 about two pictures in a fixed order


@dataclass(frozen=True)
class Rater:
    """One voter. Shares are None where there is nothing to count.

    ``agrees``: share of votes of others on the same pictures that say the same (``compared`` of them). ``repeats``
    catch pairs shown twice, ``consistent`` the share decided alike; ``identical`` catch pairs of one picture,
    ``fooled`` the share on which a side was preferred; ``left`` the share of decided votes that chose the left side.
    """

    voter: str
    votes: int
    agrees: float | None
    compared: int
    repeats: int
    consistent: float | None
    identical: int
    fooled: float | None
    left: float | None
    median_seconds: float | None


@dataclass(frozen=True)
class Agreement:
    """``alpha``: Krippendorff's, over ``units`` pairs that two or more voters judged; None where undefined.

    1 is full agreement, 0 what chance gives. ``kappa``: Cohen's, of first against repeated judgement over all
    ``repeats`` catch pairs. ``raters``: the voters, most votes first. ``note`` says how far the numbers carry.
    """

    alpha: float | None
    units: int
    kappa: float | None
    repeats: int
    raters: tuple[Rater, ...]
    note: str


def agreement(votes: Iterable[Vote]) -> Agreement:
    """Agreement between voters and consistency on catch pairs, from votes on pairs with a relative judgement."""
    kept = [vote for vote in votes if vote.ballot.better is not None]
    units: dict[tuple[str, ...], list[Judgement]] = defaultdict(list)
    for vote in kept:
        if vote.battle.catch is None:
            key, judgement = _judged(vote)
            units[key].append((vote.voter, judgement))
    shared = [unit for unit in units.values() if len({voter for voter, _ in unit}) > 1]
    twice = _repeats(kept)
    voters = Counter(vote.voter for vote in kept)
    by_voter: dict[str, list[Vote]] = defaultdict(list)
    for vote in kept:
        by_voter[vote.voter].append(vote)
    raters = tuple(_rater(voter, by_voter[voter], shared, twice.get(voter, [])) for voter, _ in voters.most_common())
    pairs = [pair for of_voter in twice.values() for pair in of_voter]
    note = f"{len(shared)} pairs were judged by two or more voters, {len(pairs)} twice by the same voter"
    if len(shared) < 30:
        note += "; below about 30 the agreement says little"
    alpha = krippendorff([[value for _, value in unit] for unit in shared])
    return Agreement(alpha, len(shared), cohen(pairs), len(pairs), raters, note)


def krippendorff(units: Sequence[Sequence[int]]) -> float | None:
    """alpha = 1 - observed / expected disagreement, interval metric (a - b)^2; a tie lies between two opposite choices.

    ``units``: judgements of each thing that was judged; those with fewer than two do not count. None where nothing was
    judged twice or every judgement is the same (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").
    """
    units = [unit for unit in units if len(unit) > 1]
    values = Counter(value for unit in units for value in unit)
    n = values.total()
    expected = sum(a * b * (x - y) ** 2 for x, a in values.items() for y, b in values.items())
    if not expected:
        return None
    observed = 0.0
    for unit in units:
        of_unit = Counter(unit)
        apart = sum(a * b * (x - y) ** 2 for x, a in of_unit.items() for y, b in of_unit.items())
        observed += apart / (len(unit) - 1)
    return 1 - (n - 1) * observed / expected


def cohen(pairs: Sequence[tuple[int, int]]) -> float | None:
    """kappa = (agreement - chance) / (1 - chance), nominal; None without pairs or where chance alone would agree."""
    if not pairs:
        return None
    first, second = (Counter(pair[place] for pair in pairs) for place in (0, 1))
    n = len(pairs)
    chance = sum(first[value] * second[value] for value in first) / n**2
    return None if chance == 1 else (sum(a == b for a, b in pairs) / n - chance) / (1 - chance)


def _judged(vote: Vote) -> tuple[tuple[str, ...], int]:
    """The prompt and what both sides show, in a fixed order; 1 where the first of them won, -1 the second, 0 a tie."""
    left, right = (side.shows for side in vote.battle.shown)
    value = {"left": 1, "right": -1, "tie": 0}[str(vote.ballot.better)]
    low, high = sorted((left, right))
    return (vote.battle.prompt, low, high), value if left == low else -value


def _repeats(votes: Sequence[Vote]) -> dict[str, list[tuple[int, int]]]:
    """Voter -> (first, repeated) judgement of catch pairs that show what the same voter judged before."""
    first = {(vote.voter, vote.receipt.battle_id): _judged(vote)[1] for vote in votes}
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for vote in votes:
        key = (vote.voter, str(vote.battle.catch_of))
        if vote.battle.catch == "repeat" and key in first:
            found[vote.voter].append((first[key], _judged(vote)[1]))
    return found


def _rater(
    voter: str, votes: Sequence[Vote], shared: Sequence[Sequence[Judgement]], repeats: Sequence[tuple[int, int]]
) -> Rater:
    same = compared = 0
    for unit in shared:
        own = [value for name, value in unit if name == voter]
        others = [value for name, value in unit if name != voter]
        same += sum(mine == other for mine in own for other in others)
        compared += len(own) * len(others)
    catches = [vote.ballot.better for vote in votes if vote.battle.catch == "identical"]
    decided = [vote.ballot.better for vote in votes if vote.ballot.better != "tie"]
    seconds = sorted(vote.ballot.seconds for vote in votes if vote.ballot.seconds is not None)
    return Rater(
        voter=voter,
        votes=len(votes),
        agrees=_share(same, compared),
        compared=compared,
        repeats=len(repeats),
        consistent=_share(sum(a == b for a, b in repeats), len(repeats)),
        identical=len(catches),
        fooled=_share(sum(better != "tie" for better in catches), len(catches)),
        left=_share(decided.count("left"), len(decided)),
        median_seconds=seconds[len(seconds) // 2] if seconds else None,
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
