"""Agreement against hand-worked and published numbers, catch pairs, and the choice of pairs."""

import itertools

import numpy as np
import pytest

from mmalign.arena import Ballot, Battle, Pairing, VoteStore, agreement, identical_of, repeat_of
from mmalign.arena.agreement import cohen, krippendorff
from mmalign.arena.comparisons import Comparisons
from tests.arena.making_votes import a_vote, battle, side


def pairwise_alpha(units: list[list[int]]) -> float:
    """The definition: 1 - mean disagreement within units / mean disagreement of all pairs of values."""
    values = [value for unit in units for value in unit]
    n = len(values)
    expected = sum((a - b) ** 2 for a, b in itertools.permutations(values, 2)) / (n * (n - 1))
    observed = sum(sum((a - b) ** 2 for a, b in itertools.permutations(unit, 2)) / (len(unit) - 1) for unit in units)
    return 1 - observed / n / expected


def test_krippendorffs_alpha() -> None:
    """0.849 is the interval alpha of the reliability data in Krippendorff 2011, "Computing Krippendorff's Alpha"."""
    a, b, c, d = (
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    )
    units = [[value for value in unit if value is not None] for unit in zip(a, b, c, d, strict=True)]
    assert krippendorff(units) == pytest.approx(0.849, abs=5e-4)
    generator = np.random.default_rng(0)
    made = [generator.integers(-1, 2, size=generator.integers(2, 5)).tolist() for _ in range(40)]
    assert krippendorff(made) == pytest.approx(pairwise_alpha(made))
    assert krippendorff([[1, 1], [-1, -1, -1], [0]]) == 1
    assert krippendorff([[1, 1], [1, 1]]) is None
    assert krippendorff([]) is None


def test_cohens_kappa() -> None:
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: agreement 0.7, chance 0.5."""
    pairs = [(1, 1)] * 20 + [(1, -1)] * 5 + [(-1, 1)] * 10 + [(-1, -1)] * 15
    assert cohen(pairs) == pytest.approx(0.4)
    assert cohen([]) is None
    assert cohen([(1, 1)] * 4) is None


def test_agreement_of_voters_who_saw_exchanged_sides() -> None:
    """The same judgement of the same pictures counts as agreement wherever they stood."""
    as_is, exchanged = battle(order=(0, 1)), battle(order=(1, 0))
    votes = [
        a_vote(as_is, "ann", Ballot(better="left", seconds=2.0), number=0),
        a_vote(exchanged, "bob", Ballot(better="right"), number=1),
        a_vote(as_is, "eve", Ballot(better="right"), number=2),
    ]
    found = agreement(votes)
    by_name = {rater.voter: rater for rater in found.raters}
    assert (by_name["ann"].agrees, by_name["bob"].agrees, by_name["eve"].agrees) == (0.5, 0.5, 0.0)
    assert (by_name["ann"].compared, by_name["ann"].median_seconds, found.units) == (2, 2.0, 1)
    assert "below about 30" in found.note


def test_catch_pairs_show_who_looks() -> None:
    plain = battle(order=(0, 1))
    votes = []
    for number, (voter, second) in enumerate([("steady", "right"), ("left-clicker", "left")]):
        first = a_vote(plain, voter, Ballot(better="left"), number=10 * number)
        again = Battle(plain.sides, order=(1, 0), catch="repeat", catch_of=first.battle.id)
        same = identical_of(side(), seed=3)
        answer = "tie" if voter == "steady" else "left"
        votes += [
            first,
            a_vote(again, voter, Ballot(better=second), number=10 * number + 1),
            a_vote(same, voter, Ballot(better=answer), number=10 * number + 2),
        ]
    steady, clicker = sorted(agreement(votes).raters, key=lambda rater: rater.voter, reverse=True)
    assert (steady.consistent, steady.fooled, steady.left) == (1.0, 0.0, 0.5)
    assert (clicker.consistent, clicker.fooled, clicker.left) == (0.0, 1.0, 1.0)
    assert agreement(votes).repeats == 2


def test_a_repeat_exchanges_sides_and_comes_once(tmp_path) -> None:
    store = VoteStore(tmp_path / "votes.db")
    for number in range(7):
        store.vote(store.open_battle(battle(prompt=f"prompt {number}")), "ann", Ballot(better="left"))
    store.vote(store.open_battle(battle()), "bob", Ballot(better="left"))
    seen = set()
    for seed in (1, 2):
        mine = list(store.votes("ann"))
        repeat = repeat_of(mine, seed=seed, gap=5)
        assert repeat is not None
        earlier = store.battle(str(repeat.catch_of))
        assert repeat.shown == earlier.shown[::-1]
        assert earlier.prompt in {f"prompt {number}" for number in range(seed + 1)}
        seen.add(repeat.catch_of)
        store.vote(store.open_battle(repeat, voter="ann"), "ann", Ballot(better="right"))
    assert len(seen) == 2
    assert len(list(store.votes("ann"))) == 9
    assert repeat_of(list(store.votes("bob")), seed=0) is None
    assert agreement(store.votes()).raters[0].consistent == 1.0


def votes_between(pairs: dict[tuple[int, int], tuple[int, int]], m: int) -> Comparisons:
    """Players numbered 0 to m - 1; (i, j) -> (wins, losses)."""
    rows = [(i, j, o) for (i, j), (w, l_) in pairs.items() for o, n in ((0, w), (1, l_)) for _ in range(n)]
    first, second, outcome = np.array(rows).T
    return Comparisons.of_arrays([f"m{place}" for place in range(m)], first, second, outcome)


def test_pairing_goes_where_votes_are_few_and_close() -> None:
    players = [f"m{place}" for place in range(4)]
    even = Pairing(tuple(players)).shares
    assert even == pytest.approx(np.full(6, 1 / 6))
    data = votes_between({(0, 1): (50, 50), (0, 2): (6, 4), (1, 2): (5, 5), (0, 3): (60, 1), (1, 3): (60, 1)}, 4)
    shares = dict(zip(Pairing.of_votes(players, data).pairs, Pairing.of_votes(players, data).shares, strict=True))
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[(1, 2)] > 2 * shares[(0, 1)]
    assert min(shares.values()) >= 0.2 / 6
    # A newcomer is met more than anybody.
    newcomer = Pairing.of_votes([*players, "new"], data)
    by_pair = dict(zip(newcomer.pairs, newcomer.shares, strict=True))
    assert min(by_pair[(place, 4)] for place in range(3)) > max(by_pair[pair] for pair in by_pair if 4 not in pair)


def test_propensities_are_those_of_the_draws() -> None:
    players = ["m0", "m1", "m2"]
    pairing = Pairing.of_votes(players, votes_between({(0, 1): (30, 30), (1, 2): (1, 1)}, 3), floor=0.3)
    draws = [pairing.draw(seed) for seed in range(3000)]
    for place, (i, j) in enumerate(pairing.pairs):
        share = np.mean([(choice.first, choice.second) == (players[i], players[j]) for choice in draws])
        assert share == pytest.approx(pairing.shares[place], abs=0.03)
    choice = pairing.draw(17)
    assert choice == pairing.draw(17)
    fight = choice.battle(side(choice.first), side(choice.second))
    assert (fight.propensity, fight.policy, fight.seed) == (choice.propensity, "adaptive floor=0.3", 17)
    with pytest.raises(ValueError, match="were drawn"):
        choice.battle(side(choice.second), side(choice.first))


@pytest.mark.parametrize(
    ("players", "floor", "message"),
    [(("a",), 0.1, "two different"), (("a", "a"), 0.1, "two different"), (("a", "b"), 0, "floor=0"),
     (("a", "b"), 2, "floor")],
)  # fmt: skip
def test_wrong_pairing(players, floor: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pairing(players, floor)


def test_adaptive_pairing_learns_the_order_of_the_top_sooner() -> None:
    """At equal cost its differences between close models are surer than those of even pairing."""
    generator, strengths = np.random.default_rng(0), np.array([0.3, 0.2, -1.5, -2.5])
    players = [f"m{place}" for place in range(4)]

    def top_met(adaptive: bool) -> int:
        rows = [(0, 1, 0), (1, 2, 0), (2, 3, 0)]
        for number in range(300):
            pairing = Pairing(tuple(players), floor=0.1)
            if adaptive and number % 10 == 0:
                first, second, outcome = np.array(rows).T
                told = Pairing.of_votes(players, Comparisons.of_arrays(players, first, second, outcome), floor=0.1)
            choice = (told if adaptive else pairing).draw(number)
            i, j = players.index(choice.first), players.index(choice.second)
            rows.append((i, j, int(generator.random() > 1 / (1 + np.exp(strengths[j] - strengths[i])))))
        return sum((i, j) == (0, 1) for i, j, _ in rows)

    assert top_met(adaptive=True) > top_met(adaptive=False)
