"""The objective: weighted terms over named branches, averaged over the rows that have them."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mmalign.losses import BATCH_COUPLED, LOSSES, Objective, bco, bco_pair, describe, dpo, kto, sft
from mmalign.losses import signatures as loss_signatures
from mmalign.types import BranchScores, GroupScores, Scores

F64 = torch.float64
MDPO = [
    {"loss": "dpo", "beta": 0.5},
    {"loss": "dpo", "beta": 0.5, "rejected": "chosen@crop"},
    {"loss": "anchor", "beta": 0.5, "coefficient": 2.0},
]


def branch(seed: int, rows: int = 4, length: bool = False) -> BranchScores:
    generator = torch.Generator().manual_seed(seed)
    logp, ref_logp = -5 + torch.randn(2, rows, generator=generator, dtype=F64)
    tokens = torch.randint(2, 9, (rows,), generator=generator).double()
    gap, token_kl = torch.rand(2, rows, generator=generator, dtype=F64)
    return BranchScores(logp, ref_logp, tokens if length else None, gap=gap, token_kl=token_kl)


def pair_scores(rows: int = 4, **fields: Any) -> Scores:
    names = ("chosen", "rejected", "chosen@crop")
    return Scores({name: branch(seed, rows, length=True) for seed, name in enumerate(names)}, **fields)


def mistakes(*terms: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match="the objective is not valid") as error:
        Objective(terms)
    return str(error.value)


def test_terms_are_weighted_and_summed() -> None:
    scores = pair_scores()
    c, r, crop = (scores[name].logratio for name in ("chosen", "rejected", "chosen@crop"))
    output = Objective(MDPO)(scores)
    anchor = torch.nn.functional.softplus(-0.5 * c)
    expected = dpo(c, r, beta=0.5) + dpo(c, crop, beta=0.5) + 2 * anchor
    torch.testing.assert_close(output.loss, expected.mean())
    assert list(output.term_losses) == ["dpo.0", "dpo.1", "anchor"]
    torch.testing.assert_close(output.term_losses["dpo.1"], dpo(c, crop, beta=0.5))
    torch.testing.assert_close(output.term_losses["anchor"], anchor)


def test_what_the_trainer_asks_an_objective() -> None:
    objective = Objective(MDPO)
    assert objective.branches == ("chosen", "rejected", "chosen@crop")
    assert objective.needs_reference
    assert objective.asks == frozenset()
    assert objective.batch_coupled == ()
    free = Objective([{"loss": "mapo"}, {"loss": "cpo", "beta": 0.1}])
    assert not free.needs_reference
    everything = [
        {"loss": "soft_dpo", "beta": 1},
        {"loss": "margin_dpo", "beta": 1},
        {"loss": "listnet"},
        {"loss": "kto", "beta": 1, "kl": "running"},
        {"loss": "aot", "beta": 1},
    ]
    objective = Objective(everything)
    assert objective.asks == {"preference", "margin", "labels", "desirable"}
    assert objective.branches == ("chosen", "rejected", "candidates", "sample")
    assert objective.batch_coupled == ("kto", "aot")


def tensor_of(scores: Scores, name: str) -> torch.Tensor:
    """What the argument ``name`` of a loss stands for."""
    if name == "logratio":
        return scores["sample"].logratio
    if name.startswith("candidate_"):
        return getattr(scores["candidates"], name.removeprefix("candidate_"))
    if name.endswith("_token_kl"):
        kl = scores[name.removesuffix("_token_kl")].token_kl
        assert kl is not None
        return kl
    return scores[name.removesuffix("_held")].logp if name.endswith("_held") else getattr(scores, name)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_runs_as_a_term_and_equals_the_function(name: str) -> None:
    scores = pair_scores(
        preference=torch.tensor([0.6, 0.7, 0.8, 0.9], dtype=F64),
        margin=torch.tensor([0.1, -0.2, 0.3, 0.4], dtype=F64),
        labels=torch.tensor([[2.0, 1.0, 0.0]] * 4, dtype=F64),
        desirable=torch.tensor([True, False, True, True]),
    )
    candidates = GroupScores(torch.randn(4, 3, dtype=F64), torch.randn(4, 3, dtype=F64))
    others = {
        name: branch(seed, length=True) for seed, name in enumerate(("gold", "chosen_other", "rejected_other"), 8)
    }
    scores = Scores(
        {**scores.branches, "candidates": candidates, "sample": branch(7), **others},
        preference=scores.preference,
        margin=scores.margin,
        labels=scores.labels,
        desirable=scores.desirable,
    )
    about = describe(name)
    values = {"beta": 0.3, "label_smoothing": 0.1, "divergence": "js", "penalty": 2.0, "weight": 0.5, "gamma": 0.1}
    values["guidance"] = 1.5
    keywords = {key: values[key] for key, value in about.keywords.items() if value is loss_signatures.REQUIRED}
    tensors = {arg: tensor_of(scores, arg) for arg in about.tensors}
    expected = LOSSES[name](**tensors, **keywords)
    output = Objective([{"loss": name, **keywords}])(scores)
    torch.testing.assert_close(output.term_losses[name], expected)
    torch.testing.assert_close(output.loss, expected.mean())


def test_score_mean_reads_per_token_scores() -> None:
    scores = pair_scores()
    chosen, rejected = scores["chosen"], scores["rejected"]
    normalised = Objective([{"loss": "dpo", "beta": 2, "score": "mean"}])(scores)
    torch.testing.assert_close(normalised.term_losses["dpo"], dpo(chosen.mean_logratio, rejected.mean_logratio, beta=2))
    aot = Objective([{"loss": "aot", "beta": 2, "score": "mean"}])(scores)
    gap = chosen.mean_logp - rejected.mean_logp
    ref_gap = chosen.ref_logp / chosen.length - rejected.ref_logp / rejected.length
    expected = torch.nn.functional.softplus(-2 * (gap.sort().values - ref_gap.sort().values))
    torch.testing.assert_close(aot.term_losses["aot"], expected)
    torch.testing.assert_close(Objective([{"loss": "sft"}])(scores).term_losses["sft"], -chosen.mean_logp)


def test_no_term_reads_a_tensor_value_unless_rows_are_absent() -> None:
    """As for the losses: a value that is read is a wait for the device."""
    real = pair_scores()
    running = [{"loss": "bco_pair", "beta": 0.5, "shift": "running"}]
    with FakeTensorMode() as mode:
        fakes = {
            name: BranchScores(*(mode.from_tensor(value) for value in (b.logp, b.ref_logp, b.length)))
            for name, b in real.branches.items()
        }
        assert Objective(MDPO + running)(Scores(fakes)).loss.shape == ()


def test_gradient_reaches_the_policy_only_through_its_scores() -> None:
    logp = torch.tensor([-1.0, -2.0], dtype=F64, requires_grad=True)
    scores = Scores({"chosen": BranchScores(logp, torch.zeros(2, dtype=F64)), "rejected": branch(1, rows=2)})
    Objective([{"loss": "dpo", "beta": 0.5}])(scores).loss.backward()
    expected = -0.5 * torch.sigmoid(-0.5 * (logp - scores["rejected"].logratio)) / 2
    torch.testing.assert_close(logp.grad, expected.detach())


def part(scores: Scores, rows: slice) -> Scores:
    cut = {
        name: BranchScores(b.logp[rows], None if b.ref_logp is None else b.ref_logp[rows], b.length[rows])
        for name, b in scores.branches.items()
        if b.length is not None
    }
    return Scores(cut, present={name: mask[rows] for name, mask in scores.present.items()})


def test_micro_batches_with_global_counts_add_up_to_the_large_batch() -> None:
    """Also where rows lack branches, so that micro-batches hold different numbers of them."""
    present = {"chosen@crop": torch.tensor([True, True, True, False, False, True, False, False])}
    scores, objective = pair_scores(rows=8, present=present), Objective(MDPO)
    counts = objective.counts(present, 8)
    assert counts.tolist() == [8, 4, 8]
    whole = objective(scores)
    pieces = [objective(part(scores, slice(i, i + 2)), counts=counts).loss for i in range(0, 8, 2)]
    torch.testing.assert_close(torch.stack(pieces).sum(), whole.loss)


def test_absent_rows_are_left_out_whatever_they_hold() -> None:
    present = {"chosen@crop": torch.tensor([True, False, True, False])}
    clean = pair_scores(present=present)
    spoilt = clean["chosen@crop"].logp.clone()
    spoilt[1], spoilt[3] = math.nan, math.inf
    spoilt.requires_grad_()
    crop = BranchScores(spoilt, clean["chosen@crop"].ref_logp, clean["chosen@crop"].length)
    scores = Scores({**clean.branches, "chosen@crop": crop}, present=present)
    output = Objective(MDPO[1:2])(scores)
    rows = dpo(clean["chosen"].logratio, clean["chosen@crop"].logratio, beta=0.5)
    torch.testing.assert_close(output.loss, (rows[0] + rows[2]) / 2)
    assert output.term_losses["dpo"][[1, 3]].tolist() == [0.0, 0.0]
    output.loss.backward()
    assert spoilt.grad is not None
    assert spoilt.grad.isfinite().all()
    assert spoilt.grad[[1, 3]].tolist() == [0.0, 0.0]


def test_no_row_at_all_is_a_loss_of_zero_that_still_has_a_graph() -> None:
    logp = torch.randn(3, requires_grad=True)
    scores = Scores({"chosen": BranchScores(logp)}, present={"chosen": torch.zeros(3, dtype=torch.bool)})
    output = Objective([{"loss": "sft"}])(scores)
    output.loss.backward()
    assert output.loss.item() == 0
    assert logp.grad is not None
    assert logp.grad.abs().sum() == 0


def test_all_mistakes_are_listed_at_once() -> None:
    text = mistakes(
        {"loss": "dpp", "beta": 0.1},
        {"loss": "dpo", "bta": 0.1},
        {"loss": "sft", "rejected": "rejected"},
        {"loss": "dpo", "beta": "5e3", "coefficient": "half", "score": "average"},
        {"loss": "robust_dpo", "beta": 0.1, "label_smoothing": 0.5},
    )
    assert "objective.0: unknown loss 'dpp' (did you mean 'dpo'" in text
    assert "plackett_luce" in text
    assert "objective.1: unknown key 'bta' (did you mean 'beta'?)" in text
    assert "objective.1: dpo needs 'beta'" in text
    assert "objective.2: unknown key 'rejected'; sft takes coefficient, score, chosen" in text
    assert "objective.3: beta must be a number or auto, got '5e3' (text in YAML; write 5000.0)" in text
    assert "objective.3: coefficient must be a number, got 'half'" in text
    assert "objective.3: score must be sum | mean, got 'average'" in text
    assert "objective.4: robust_dpo: label_smoothing must lie in [0, 0.5), got 0.5" in text
    assert text.count("\n  - ") == 8


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"loss": "dpo"}, "dpo needs 'beta'"),
        ({"loss": "dpo", "beta": True}, "beta must be a number or auto, got True"),
        ({"loss": "dpo", "beta": 0}, "beta must be > 0, got 0"),
        ({"loss": "dpo", "beta": 1, "shift": "running"}, "unknown key 'shift'"),
        ({"loss": "dpo", "beta": 1, "chosen": 3}, "chosen must name a branch"),
        ({"loss": "dpo", "beta": 1, "rejected": "chosen"}, "name the same branch 'chosen'"),
        ({"loss": "soft_dpo", "beta": 1, "preference": 0.7}, "comes from the data's rows"),
        ({"loss": "kto", "beta": 1, "kl": "runing"}, "kl must be a number or running, got 'runing'"),
        ({"loss": "kto", "beta": 1, "chosen": "chosen"}, "unknown key 'chosen'"),
        ({"loss": "bco", "beta": 1, "shift": None}, "shift must be a number or running, got None"),
        ({"loss": "f_dpo", "beta": 1, "divergence": "kl"}, "divergence must be reverse_kl | forward_kl | js | alpha"),
        ({"loss": "f_dpo", "beta": 1, "divergence": "js", "alpha": 0.3}, "alpha is ignored unless divergence is alpha"),
        ({"loss": "mapo", "num_timesteps": 999.5}, "num_timesteps must be a whole number, got 999.5"),
        ({"loss": "ranklist", "skip": 0}, "skip must be >= 1"),
        ({"loss": "sft", "score": "mean"}, "score has no effect on sft"),
        ({"loss": ["dpo"]}, "unknown loss"),
    ],
)
def test_a_mistake_names_what_was_given_and_what_is_allowed(term: dict[str, Any], message: str) -> None:
    assert message in mistakes(term)


def test_an_empty_objective_is_refused() -> None:
    assert "at least one term" in mistakes()


def test_scores_that_a_term_cannot_do_without() -> None:
    no_reference = Scores({"chosen": BranchScores(torch.zeros(2)), "rejected": BranchScores(torch.zeros(2))})
    for term in ({"loss": "dpo", "beta": 1}, {"loss": "aot", "beta": 1}):
        with pytest.raises(ValueError, match=rf"objective.0 \({term['loss']}\): .*reference") as error:
            Objective([term])(no_reference)
        assert "adapter.score" in str(error.value)
    with pytest.raises(ValueError, match="no branch 'chosen@retrieved' was scored"):
        Objective([{"loss": "dpo", "beta": 1, "rejected": "chosen@retrieved"}])(pair_scores())
    with pytest.raises(ValueError, match=r"objective.0 \(soft_dpo\): asks for 'preference'"):
        Objective([{"loss": "soft_dpo", "beta": 1}])(pair_scores())


def unpaired(values: list[float], **fields: Any) -> Scores:
    logp = torch.tensor(values, dtype=F64, requires_grad=True)
    flags = torch.arange(len(values)) % 2 == 0
    return Scores({"sample": BranchScores(logp, torch.zeros_like(logp))}, desirable=flags, **fields)


def rows_of(scores: Scores) -> Tensor:
    return scores["sample"].logratio


def test_running_shift_is_the_mean_of_all_rewards_seen() -> None:
    objective = Objective([{"loss": "bco", "beta": 0.5, "shift": "running"}])
    first, second = unpaired([1.0, 2.0, 6.0]), unpaired([-1.0])
    for scores, shift in ((first, 0.5 * 3.0), (second, 0.5 * 2.0)):
        expected = bco(rows_of(scores), scores.desirable, beta=0.5, shift=shift)
        torch.testing.assert_close(objective(scores).term_losses["bco"], expected)
    objective.train(False)
    frozen = bco(rows_of(first), first.desirable, beta=0.5, shift=1.0)
    for _ in range(2):
        torch.testing.assert_close(objective(first).term_losses["bco"], frozen)


def test_running_shift_of_pairs_takes_in_both_sides() -> None:
    scores, objective = pair_scores(), Objective([{"loss": "bco_pair", "beta": 0.5, "shift": "running"}])
    c, r = scores["chosen"].logratio, scores["rejected"].logratio
    expected = bco_pair(c, r, beta=0.5, shift=0.5 * torch.cat([c, r]).mean())
    torch.testing.assert_close(objective(scores).term_losses["bco_pair"], expected)


def test_running_kl_is_the_batch_mean_and_never_negative() -> None:
    objective = Objective([{"loss": "kto", "beta": 0.5, "kl": "running"}])
    for values, kl in (([1.0, 2.0, 6.0], 3.0), ([-1.0, -3.0], 0.0), ([4.0], 4.0)):
        scores = unpaired(values)
        output = objective(scores)
        expected = kto(rows_of(scores), scores.desirable, beta=0.5, kl=kl)
        torch.testing.assert_close(output.term_losses["kto"], expected)
        assert objective.state_dict()["0.kl.kl"].item() == kl
        (got,) = torch.autograd.grad(output.loss, scores["sample"].logp)
        (fixed,) = torch.autograd.grad(expected.mean(), scores["sample"].logp)
        torch.testing.assert_close(got, fixed, msg="the estimate is a constant for the gradient")


def test_estimates_leave_out_absent_rows() -> None:
    present = {"sample": torch.tensor([True, False, True])}
    scores = unpaired([1.0, 100.0, 3.0], present=present)
    output = Objective([{"loss": "kto", "beta": 0.5, "kl": "running"}])(scores)
    expected = kto(rows_of(scores), scores.desirable, beta=0.5, kl=2.0)
    torch.testing.assert_close(output.term_losses["kto"][[0, 2]], expected[[0, 2]])


def test_reduce_hook_makes_the_estimate_global() -> None:
    """Two processes with 3 and 1 rows: the all-reduced mean is over 4 rows, not the mean of two means."""
    mine, other = [1.0, 2.0, 6.0], [-1.0]
    objective = Objective([{"loss": "kto", "beta": 0.5, "kl": "running"}])
    objective.reduce = lambda values: (values + torch.tensor([sum(other), len(other)], dtype=F64)) / 2
    scores = unpaired(mine)
    expected = kto(rows_of(scores), scores.desirable, beta=0.5, kl=2.0)
    torch.testing.assert_close(objective(scores).term_losses["kto"], expected)


def test_estimates_survive_a_checkpoint() -> None:
    terms = [
        {"loss": "bco", "beta": 0.5, "shift": "running"},
        {"loss": "diffusion_kto", "beta": 0.5, "kl": "running"},
    ]
    interrupted, resumed = Objective(terms), Objective(terms)
    interrupted(unpaired([1.0, 2.0, 6.0]))
    state = {key: value.clone() for key, value in interrupted.state_dict().items()}
    assert set(state) == {"0.shift.mean", "0.shift.count", "1.kl.kl"}
    resumed.load_state_dict(state)
    after = unpaired([-1.0, 5.0])
    torch.testing.assert_close(resumed(after).loss, interrupted(after).loss)
    with pytest.raises(ValueError, match="not those of this objective"):
        Objective(MDPO).load_state_dict(state)
    assert Objective(MDPO).state_dict() == {}


class _Entry:
    name, value = "double_sft", "plugin:double_sft"

    @staticmethod
    def load():
        def double_sft(chosen_mean_logp: Tensor, chosen_taste: Tensor, *, factor: float = 2.0) -> Tensor:
            """-factor chosen_mean_logp + chosen_taste."""
            return factor * sft(chosen_mean_logp) + chosen_taste

        return double_sft


def test_packages_add_losses_and_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_signatures, "entry_points", lambda group: [_Entry] if group == "mmalign.losses" else [])
    objective = Objective([{"loss": "double_sft", "factor": 3.0}])
    scores = pair_scores()
    scores = Scores(scores.branches, extras={"chosen_taste": torch.ones(4, dtype=F64)})
    torch.testing.assert_close(objective(scores).loss, 1 - 3 * scores["chosen"].mean_logp.mean())
    monkeypatch.setattr(_Entry, "name", "dpo")
    with pytest.raises(ValueError, match="'dpo' is registered twice"):
        Objective(MDPO)


def test_describe() -> None:
    about = describe("bco_pair")
    assert about.formula == "-log sigma(beta c - shift) - log sigma(-(beta r - shift))."
    assert "arXiv 2404.04656" in about.details
    assert about.tensors == ("chosen_logratio", "rejected_logratio")
    assert about.keywords == {"beta": loss_signatures.REQUIRED, "shift": 0.0}
    assert about.branch_keys == ("chosen", "rejected")
    assert about.needs_reference
    assert about.batch_coupled == BATCH_COUPLED["bco_pair"]
    assert str(describe("mapo")).startswith(
        "mapo(beta=0.1, snr=0.5, num_timesteps=1000) asks chosen_logp, rejected_logp: "
    )
    with pytest.raises(ValueError, match=r"unknown loss 'nope'; losses: .*dpo"):
        describe("nope")
