"""The fit against a maximiser written here, closed forms, and simulated voters of known taste."""

import dataclasses
import math
import time
from functools import cache

import numpy as np
import pytest

from mmalign.arena import Ballot, Battle, comparisons_of, leaderboard, smallest_flip
from mmalign.arena.comparisons import FIRST, SECOND, TIE, Comparisons
from mmalign.arena.robustness import without
from mmalign.arena.uncertainty import t_quantile
from tests.arena.making_votes import a_vote, battle, davidson_outcomes, side


def of_counts(wins: int, losses: int, ties: int, *, users: int | None = None) -> Comparisons:
    """Two players that met so often."""
    outcome = np.repeat([FIRST, SECOND, TIE], [wins, losses, ties])
    zero = np.zeros(len(outcome), dtype=int)
    user = None if users is None else np.arange(len(outcome)) % users
    return Comparisons.of_arrays(["a", "b"], zero, zero + 1, outcome, user=user)


def simulated(seed: int, n: int, strengths: list[float], *, users: int, bonus: float = 0.0, taste: float = 0.0):
    """Comparisons of voters who each have a taste of their own around the strengths."""
    generator = np.random.default_rng(seed)
    m = len(strengths)
    first = generator.integers(m, size=n)
    second = (first + 1 + generator.integers(m - 1, size=n)) % m
    user = generator.integers(users, size=n)
    left = generator.integers(2, size=n) * 2 - 1
    own = np.array(strengths) + taste * generator.normal(size=(users, m))
    difference = own[user, first] - own[user, second]
    outcome = davidson_outcomes(generator, difference, math.log(0.5), bonus * left)
    names = [f"m{place}" for place in range(m)]
    return Comparisons.of_arrays(names, first, second, outcome, user=user, left=left)


def plain_maximum(data: Comparisons, ridge: float) -> tuple[list[float], float, float]:
    """Strengths, log nu and the left bonus: Newton in plain Python, comparison by comparison, slopes by differences."""
    m = len(data.players)
    rows = list(zip(data.first.tolist(), data.second.tolist(), data.outcome.tolist(), data.left.tolist(), strict=True))

    def gradient(at: list[float]) -> list[float]:
        total = [-ridge * value for value in at]
        for i, j, outcome, left in rows:
            d = at[i] - at[j] + at[m + 1] * left
            weights = [math.exp(d / 2), math.exp(-d / 2), math.exp(at[m])]
            p = [weight / sum(weights) for weight in weights]
            by_d = (outcome == FIRST) / 2 - (outcome == SECOND) / 2 - (p[0] - p[1]) / 2
            total[i] += by_d
            total[j] -= by_d
            total[m] += (outcome == TIE) - p[2]
            total[m + 1] += by_d * left
        return total

    at, h = [0.0] * (m + 2), 1e-4
    for _ in range(12):
        system = [[] for _ in at]
        for place in range(len(at)):
            ahead, behind = (gradient([v + sign * h * (k == place) for k, v in enumerate(at)]) for sign in (1, -1))
            for row, (x, y) in enumerate(zip(ahead, behind, strict=True)):
                system[row].append((y - x) / (2 * h))
        at = [value + move for value, move in zip(at, solved(system, gradient(at)), strict=True)]
    return at[:m], at[m], at[m + 1]


def solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination of a positive definite system."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for place, pivot in enumerate(rows):
        for row in rows[place + 1 :]:
            factor = row[place] / pivot[place]
            row[:] = [value - factor * above for value, above in zip(row, pivot, strict=True)]
    found = [0.0] * len(rows)
    for place in reversed(range(len(rows))):
        known = sum(rows[place][k] * found[k] for k in range(place + 1, len(rows)))
        found[place] = (rows[place][-1] - known) / rows[place][place]
    return found


def test_the_fit_is_the_maximum_that_plain_python_finds() -> None:
    data = simulated(3, 60, [0.8, 0.0, -0.8], users=9, bonus=0.3)
    board = leaderboard(data, ridge=0.1)
    strengths, log_nu, bonus = plain_maximum(data, 0.1)
    assert [board[name].strength for name in data.players] == pytest.approx(strengths, abs=1e-5)
    assert board.tie_probability == pytest.approx(math.exp(log_nu) / (2 + math.exp(log_nu)), abs=1e-6)
    assert board.position is not None
    assert board.position.value == pytest.approx(bonus, abs=1e-5)
    assert sum(strengths) == pytest.approx(0, abs=1e-5)


def test_two_models_in_closed_form() -> None:
    """Without a ridge d = log(wins / losses), and nu = ties / sqrt(wins * losses)."""
    board = leaderboard(of_counts(60, 20, 30), ridge=1e-9)
    assert board["a"].strength - board["b"].strength == pytest.approx(math.log(3), abs=1e-6)
    nu = 30 / math.sqrt(60 * 20)
    assert board.tie_probability == pytest.approx(nu / (2 + nu), abs=1e-7)
    assert board["a"].elo - board["b"].elo == pytest.approx(400 * math.log10(3), abs=1e-3)
    without_ties = leaderboard(of_counts(60, 20, 0), ridge=1e-9)
    assert without_ties["a"].strength == pytest.approx(math.log(3) / 2, abs=1e-6)
    assert without_ties.tie_probability is None


def test_the_sandwich_in_closed_form() -> None:
    """Every vote a voter: variance of d is 1 / wins + 1 / losses, times G / (G - 1)."""
    board = leaderboard(of_counts(60, 20, 0), ridge=1e-9)
    assert board.top_two is not None
    half = t_quantile(0.975, 79) * math.sqrt((1 / 60 + 1 / 20) * 80 / 79)
    assert (board.top_two.high - board.top_two.low) / 2 == pytest.approx(half, rel=1e-6)


def test_votes_of_one_mind_are_no_more_than_one_vote() -> None:
    """Ten copies of every voter's votes, by the same voters: the same interval, not one of a third of its width."""
    once = simulated(5, 200, [0.5, -0.5], users=40)
    again = np.tile(np.arange(len(once)), 10)
    copies = Comparisons.of_arrays(
        once.players, once.first[again], once.second[again], once.outcome[again], user=once.user[again]
    )
    narrow, wide = (
        leaderboard(copies, ridge=1e-6),
        leaderboard(
            Comparisons.of_arrays(once.players, once.first, once.second, once.outcome, user=once.user), ridge=1e-6
        ),
    )
    for player in once.players:
        assert narrow[player].high - narrow[player].low == pytest.approx(wide[player].high - wide[player].low, rel=0.05)


@pytest.mark.parametrize(
    ("probability", "freedom", "value"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 5, 2.57058), (0.975, 30, 2.04227), (0.95, 10, 1.81246),
     (0.975, 10**6, 1.959966), (0.025, 5, -2.57058), (0.5, 7, 0.0)],
)  # fmt: skip
def test_quantiles_of_students_t(probability: float, freedom: int, value: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(value, abs=2e-4 * max(1, abs(value)))


@cache
def of_a_crowd(strengths: tuple[float, ...]) -> list[float]:
    crowd = leaderboard(simulated(999, 300_000, list(strengths), users=100_000, taste=0.8))
    return [crowd[f"m{place}"].strength for place in range(len(strengths))]


@pytest.mark.parametrize("interval", ["sandwich", "bootstrap"])
def test_intervals_cover_the_truth_of_voters_with_tastes_of_their_own(interval) -> None:
    """Voters differ, so an interval over votes is too narrow; one over voters holds what it says."""
    strengths, runs, held, as_votes = [0.6, 0.1, -0.7], 80 if interval == "sandwich" else 20, [], []
    # Tastes flatten the choices of a crowd; what a board estimates is the strength in the whole population.
    truth = of_a_crowd(tuple(strengths))
    for seed in range(runs):
        data = simulated(seed, 900, strengths, users=45, taste=0.8)
        board = leaderboard(data, interval=interval, draws=60, seed=seed)
        held += [board[f"m{place}"].low < value < board[f"m{place}"].high for place, value in enumerate(truth)]
        every = dataclasses.replace(data, user=np.arange(len(data)), users=len(data))
        plain = leaderboard(every)
        as_votes += [plain[f"m{place}"].low < value < plain[f"m{place}"].high for place, value in enumerate(truth)]
    assert np.mean(held) > 0.86
    assert np.mean(as_votes) < np.mean(held) - 0.08


def test_separable_votes_stay_finite_and_are_called_so() -> None:
    board = leaderboard(of_counts(12, 0, 0))
    assert 0 < board["a"].strength < 5
    assert math.isfinite(board["a"].high)
    assert any("only won or only lost" in note and "ridge of 0.1" in note for note in board.notes)
    assert not any("only won" in note for note in leaderboard(of_counts(11, 1, 0)).notes)


@pytest.mark.parametrize("interval", ["sandwich", "bootstrap"])
def test_a_few_wins_without_a_loss_are_little(interval) -> None:
    """Three of three happen by chance one time in four. The interval is a cautious one: it takes some more than six."""
    few, many = leaderboard(of_counts(3, 0, 0), interval=interval), leaderboard(of_counts(20, 0, 0), interval=interval)
    assert few.top_two is not None
    assert many.top_two is not None
    assert few.top_two.low < 0
    assert any("cannot tell a from b" in note for note in few.notes)
    assert many.top_two.low > 0


def test_a_model_without_a_vote_that_counts_is_named_not_ranked() -> None:
    votes = [a_vote(battle("a", "b"), f"v{k}", Ballot(better="left"), number=k) for k in range(4)]
    board = leaderboard([*votes, a_vote(battle("a", "c"), "v", Ballot(better="left"), number=9, exported=True)])
    assert board.players == ("a", "b")
    assert "no vote that counts compares c" in board.notes
    assert board.components == (("a", "b"),)


def test_all_ties_stay_finite() -> None:
    board = leaderboard(of_counts(0, 0, 30))
    assert board["a"].strength == pytest.approx(0)
    assert 0.7 < (board.tie_probability or 0) < 1


def test_ranks_respect_intervals_and_small_data_says_so() -> None:
    close = leaderboard(of_counts(11, 9, 0))
    assert [standing.rank for standing in close.standings] == [1, 1]
    assert any("cannot tell a from b" in note for note in close.notes)
    clear = leaderboard(of_counts(180, 20, 0))
    assert [standing.rank for standing in clear.standings] == [1, 2]
    assert not any("cannot tell" in note for note in clear.notes)


def test_one_voter_and_few_voters_are_noted() -> None:
    alone = leaderboard(of_counts(60, 20, 0, users=1), ridge=1e-9).top_two
    assert alone is not None
    assert (alone.high - alone.low) / 2 == pytest.approx(1.959966 * math.sqrt(1 / 60 + 1 / 20), rel=1e-4)
    assert leaderboard(of_counts(60, 20, 0, users=1))["a"].low > 0
    assert any(note.startswith("one voter") for note in leaderboard(of_counts(11, 9, 0, users=1)).notes)
    few = leaderboard(of_counts(11, 9, 0, users=4))
    assert any("only 4 voters" in note for note in few.notes)
    with pytest.raises(ValueError, match="at least two voters"):
        leaderboard(of_counts(11, 9, 0, users=1), interval="bootstrap")


def test_groups_that_never_met_are_not_compared() -> None:
    first, second = np.array([0, 0, 1, 2, 3, 2] * 5), np.array([1, 1, 0, 3, 2, 3] * 5)
    board = leaderboard(Comparisons.of_arrays("abcd", first, second, np.zeros(30, dtype=int)))
    assert board.components == (("a", "b"), ("c", "d"))
    assert any("a, b | c, d" in note for note in board.notes)
    assert {standing.player: standing.component for standing in board.standings} == {"a": 0, "b": 0, "c": 1, "d": 1}
    assert "group 2" in board.markdown()


def test_the_left_side_is_allowed_for() -> None:
    data = simulated(0, 4000, [0.4, -0.4], users=400, bonus=0.5)
    board = leaderboard(data)
    assert board.position is not None
    assert board.position.low < 0.5 < board.position.high
    assert any("favour the left side" in note for note in board.notes)
    assert leaderboard(data, position=False).position is None


def test_a_position_that_goes_with_the_model_is_not_estimated() -> None:
    votes = [
        a_vote(battle(order=(0, 1)), f"v{number}", Ballot(better="left" if number % 3 else "right"), number=number)
        for number in range(60)
    ]
    board = leaderboard(votes)
    assert board.position is None
    assert any("position goes along with the models" in note for note in board.notes)


def test_style_takes_the_blame_for_a_model_that_only_saturates() -> None:
    generator = np.random.default_rng(0)
    n = 3000
    saturation = np.where(np.arange(n) % 2, 0.3, 0.0) + generator.normal(0, 0.2, n)
    outcome = davidson_outcomes(generator, 3 * saturation, math.log(0.3))
    zero = np.zeros(n, dtype=int)
    players = ["garish", "plain"]
    blind = leaderboard(Comparisons.of_arrays(players, zero, zero + 1, outcome))
    seeing = leaderboard(Comparisons.of_arrays(players, zero, zero + 1, outcome, covariates={"saturation": saturation}))
    assert blind["garish"].low > 0.1
    assert seeing["garish"].low < 0 < seeing["garish"].high
    (effect,) = seeing.style
    scale = math.sqrt(np.mean(saturation**2))
    assert effect.low < 3 * scale < effect.high
    assert any("voters go by saturation" in note for note in seeing.notes)


def test_votes_become_comparisons_as_they_stood_on_the_screen() -> None:
    fight = battle("base", "aligned", order=(1, 0))
    votes = [
        a_vote(fight, "ann", Ballot(better="left"), number=0),
        a_vote(fight, "bob", Ballot(better="right"), number=1),
        a_vote(fight, "bob", Ballot(better="tie"), number=2),
        a_vote(fight, "eve", Ballot(better="tie", left_ok=False, right_ok=False), number=3),
        a_vote(fight, "eve", Ballot(better="left", left_ok=False, right_ok=False), number=4),
        a_vote(fight, "eve", Ballot(left_ok=True), number=5),
        a_vote(fight, "eve", Ballot(better="left"), number=6, exported=True),
        a_vote(dataclasses.replace(fight, catch="repeat", catch_of="x"), "eve", Ballot(better="left"), number=7),
        a_vote(Battle((side("m", picture="1"), side("m", picture="2"))), "eve", Ballot(better="left"), number=8),
    ]
    data = comparisons_of(votes)
    assert data.left_out == {"both bad": 1, "unsaid": 1, "exported": 1, "catch": 1, "one player": 1}
    board = leaderboard(votes)
    place = board.players.index
    assert board.wins[place("aligned")][place("base")] == 2
    assert board.wins[place("base")][place("aligned")] == 1
    assert board.ties[place("base")][place("aligned")] == 1
    assert (board.votes, board.voters) == (4, 3)
    assert any("1 vote was exported for training" in note for note in board.notes)
    assert len(comparisons_of(votes, exported=True)) == 5


def test_rankings_estimate_plackett_luce_strengths() -> None:
    generator = np.random.default_rng(1)
    strengths = {"a": 0.7, "b": 0.0, "c": -0.7}
    votes = []
    for number in range(1500):
        fight = battle(*strengths, seed=number)
        noisy = [strengths[one.model] + generator.gumbel() for one in fight.shown]
        ranking = tuple(int(place) for place in np.argsort(noisy)[::-1])
        votes.append(a_vote(fight, f"v{number % 300}", Ballot(ranking=ranking), number=number))
    board = leaderboard(votes)
    for name, strength in strengths.items():
        assert board[name].strength == pytest.approx(strength, abs=0.1)
    assert (board.comparisons, board.votes, board.position, board.tie_probability) == (4500, 1500, None, None)
    assert any("Plackett-Luce" in note for note in board.notes)


def test_pairs_of_rankings_say_nothing_of_ties() -> None:
    """A ranking cannot be a tie, so adding rankings does not make ties look rarer."""
    pairs = [
        a_vote(
            battle("a", "b", seed=number),
            f"v{number}",
            Ballot(better=["left", "right", "tie"][number % 3]),
            number=number,
        )
        for number in range(90)
    ]
    rankings = [
        a_vote(battle("a", "b", "c", seed=number), f"r{number}", Ballot(ranking=(0, 1, 2)), number=100 + number)
        for number in range(300)
    ]
    assert leaderboard(pairs + rankings).tie_probability == pytest.approx(leaderboard(pairs).tie_probability, abs=0.02)


def test_the_lead_falls_without_the_votes_that_are_named() -> None:
    data = simulated(2, 500, [0.25, 0.1, -0.4], users=50)
    for unit, most in (("vote", 60), ("voter", 25)):
        flip = smallest_flip(data, unit=unit)
        assert flip.dropped is not None
        assert 0 < flip.dropped <= most
        assert len(flip.ids) == flip.dropped
        assert leaderboard(data).standings[0].player == flip.top
        assert leaderboard(without(data, flip)).standings[0].player == flip.rival
        assert "found greedily" in str(flip)
    solid = smallest_flip(of_counts(100, 0, 0))
    assert (solid.dropped, solid.rival) == (None, None)


def test_the_smallest_flip_of_two_models_is_exact() -> None:
    """45 wins to 20: the lead turns when 26 wins are gone."""
    flip = smallest_flip(of_counts(45, 20, 0))
    assert (flip.dropped, flip.total, flip.rival) == (26, 65, "b")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"interval": "exact"}, "sandwich, bootstrap"), ({"ridge": 0}, "ridge"), ({"level": 1}, "level"),
     ({"draws": 2}, "draws"), ({"style": {}}, "comparisons_of")],
)  # fmt: skip
def test_wrong_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        leaderboard(of_counts(3, 2, 1), **settings)


def test_no_vote_to_count() -> None:
    with pytest.raises(ValueError, match="there are no votes"):
        leaderboard([])
    with pytest.raises(ValueError, match="1 exported"):
        leaderboard([a_vote(battle(), "ann", Ballot(better="left"), exported=True)])


def test_a_million_votes_take_seconds() -> None:
    """Processor seconds: other work on the machine does not count. Measured: 0.2."""
    data = simulated(0, 1_000_000, [place / 25 - 1 for place in range(50)], users=20_000)
    started = time.process_time()
    board = leaderboard(data)
    assert time.process_time() - started < 5
    assert board.votes == 1_000_000
    assert board["m49"].strength == pytest.approx(0.98, abs=0.06)
