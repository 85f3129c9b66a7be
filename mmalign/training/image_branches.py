"""Which branches and labels each kind of row offers, and whether an objective can be trained on them."""

from collections.abc import Mapping

from mmalign.losses import Objective
from mmalign.losses.signatures import LossSignature, available_losses
from mmalign.losses.terms import Term
from mmalign.training.config import DataConfig
from mmalign.types import CANDIDATES, CHOSEN, REJECTED, SAMPLE, RowKind

BRANCHES: Mapping[RowKind, tuple[str, ...]] = {
    "pair": (CHOSEN, REJECTED),
    "ranking": (CANDIDATES,),
    "unary": (SAMPLE,),
}
LABELS: Mapping[RowKind, frozenset[str]] = {
    "pair": frozenset({"preference", "margin"}),
    "ranking": frozenset({"labels"}),
    "unary": frozenset({"desirable"}),
}
_NAMES: Mapping[RowKind, str] = {
    "pair": "preference pairs",
    "ranking": "rankings of k pictures per prompt",
    "unary": "single pictures that are desirable or not",
}
_ADVICE: Mapping[RowKind, str] = {
    "pair": "",
    "ranking": "; or read the rankings as pairs, with data.as: pairs",
    "unary": "",
}

# What a source always gives, so that the objective can be checked before the files are opened.
KIND_OF_SOURCE: Mapping[str, RowKind] = {
    "pickapic": "pair",
    "imagereward": "ranking",
    "genai_bench": "pair",
    "kto_csv": "unary",
    "pickapic_rankings": "ranking",
}
_KIND_AS: Mapping[str, RowKind] = {"pairs": "pair", "unary": "unary"}


def kind_of_rows(data: DataConfig) -> RowKind | None:
    """The kind of row that ``data`` will give, or None where only its files can tell."""
    return _KIND_AS.get(data.as_) or KIND_OF_SOURCE.get(data.source)


def check_rows(objective: Objective, kind: RowKind) -> None:
    """ValueError where a term of ``objective`` cannot be computed on rows of ``kind``; it names the losses that can."""
    problem = problem_with_rows(objective, kind)
    if problem is not None:
        raise ValueError(problem)


def problem_with_rows(objective: Objective, kind: RowKind) -> str | None:
    """Which terms cannot be computed on rows of ``kind``, and the losses that can; None where all of them can."""
    problems = [
        f"objective.{index} ({term.loss_name}): {problem}"
        for index, term in enumerate(objective.terms)
        if (problem := _problem(term, kind)) is not None
    ]
    if not problems:
        return None
    return (
        f"{'; '.join(problems)}. The data are {_NAMES[kind]}: choose from {', '.join(losses_for(kind))}"
        f"{_ADVICE[kind]} (mmalign losses describes them)"
    )


def losses_for(kind: RowKind) -> list[str]:
    """Losses that train on rows of ``kind`` without renaming a branch, by name."""
    return sorted(name for name, loss in available_losses().items() if _fits(LossSignature.of(loss), kind))


def _fits(signature: LossSignature, kind: RowKind) -> bool:
    if signature.reads_rewards or signature.extras:
        return False
    return set(signature.branch_keys) <= set(BRANCHES[kind]) and signature.row_fields <= LABELS[kind]


def reward_problem(objective: Objective) -> str | None:
    """Why a generator cannot be trained with terms that read the scores of a reward model; None without any."""
    names = ", ".join(objective.reads_rewards)
    return f"{names} trains reward models; set family: reward, or choose a loss of generators" if names else None


def _problem(term: Term, kind: RowKind) -> str | None:
    offered = BRANCHES[kind]
    lacking = [branch for branch in term.branches.values() if branch not in offered]
    if lacking:
        return f"there is no branch {' or '.join(lacking)}, only {' and '.join(offered)}"
    # k scores per row fit only a loss made for k scores, and one score per row fits all the others.
    for key, branch in term.branches.items():
        if (key == CANDIDATES) != (branch == CANDIDATES):
            return f"{key}: {branch} is not possible, because only listwise losses read all candidates of a row"
    labels = sorted(term.signature.row_fields - LABELS[kind])
    return f"the rows have no {' and no '.join(labels)}" if labels else None
