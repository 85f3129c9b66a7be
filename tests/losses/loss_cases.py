"""One row per loss: what its paper says, retyped on plain floats, independently of the package.

``equation`` and ``slope`` see one row as a mapping name -> float (or list of floats, or bool) plus the keywords.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LOG2 = math.log(2)
Row = Mapping[str, Any]


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def ls(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -700 else x


def h(row: Row) -> float:
    return row["chosen_logratio"] - row["rejected_logratio"]


def of_margin(slope: Callable[..., float]) -> Callable[..., dict[str, float]]:
    """Gradient of a loss that depends on the margin alone, from its slope in the margin."""

    def both(row: Row, **keywords: Any) -> dict[str, float]:
        value = slope(row, **keywords)
        return {"chosen_logratio": value, "rejected_logratio": -value}

    return both


@dataclass(frozen=True)
class Case:
    """``worked`` and ``start`` are (inputs, keywords, expected rows): numbers done by hand, and the value at zero
    log-ratio (reference-free: at equal scores). ``falls``/``rises``: arguments in which the loss is monotone, under
    ``monotone_keywords`` where they differ; ``not_monotone`` says why there are none."""

    keywords: dict[str, Any]
    equation: Callable[..., Any]
    slope: Callable[..., dict[str, Any]]
    worked: tuple[dict[str, Any], dict[str, Any], list[float]]
    start: tuple[dict[str, Any], dict[str, Any], list[float]]
    falls: tuple[str, ...] = ()
    rises: tuple[str, ...] = ()
    not_monotone: str = ""
    monotone_keywords: dict[str, Any] = field(default_factory=dict)
    whole_batch: bool = False


PAIR = {"chosen_logratio": [1.0], "rejected_logratio": [-1.0]}
ZERO = {"chosen_logratio": [0.0], "rejected_logratio": [0.0]}
UP_DOWN: dict[str, Any] = {"falls": ("chosen_logratio",), "rises": ("rejected_logratio",)}


def dpo(row, beta, label_smoothing):
    z = beta * h(row)
    return -(1 - label_smoothing) * ls(z) - label_smoothing * ls(-z)


def f_of(name, alpha):
    value = {
        "forward_kl": lambda x: -math.exp(-x),
        "js": lambda x: x + LOG2 - math.log(1 + math.exp(x)),
        "alpha": lambda x: (1 - math.exp(-alpha * x)) / alpha,
    }
    slope = {
        "forward_kl": lambda x: math.exp(-x),
        "js": lambda x: sigma(-x),
        "alpha": lambda x: math.exp(-alpha * x),
    }
    return value[name], slope[name]


def f_dpo(row, beta, divergence, alpha):
    g, _ = f_of(divergence, alpha)
    return -ls(beta * (g(row["chosen_logratio"]) - g(row["rejected_logratio"])))


def f_dpo_slope(row, beta, divergence, alpha):
    g, dg = f_of(divergence, alpha)
    c, r = row["chosen_logratio"], row["rejected_logratio"]
    outer = -beta * sigma(-beta * (g(c) - g(r)))
    return {"chosen_logratio": outer * dg(c), "rejected_logratio": -outer * dg(r)}


def exo(row, beta, label_smoothing):
    p = sigma(beta * h(row))
    return p * math.log(p / (1 - label_smoothing)) + (1 - p) * math.log((1 - p) / label_smoothing)


def exo_slope(row, beta, label_smoothing):
    z = beta * h(row)
    p = sigma(z)
    return beta * p * (1 - p) * (z - math.log((1 - label_smoothing) / label_smoothing))


def discopop(row, beta, tau):
    z = beta * h(row)
    m = sigma(z / tau)
    return (1 - m) * -ls(z) + m * math.exp(-z)


def discopop_slope(row, beta, tau):
    z = beta * h(row)
    m = sigma(z / tau)
    return beta * (m * (1 - m) / tau * (math.exp(-z) + ls(z)) - (1 - m) * sigma(-z) - m * math.exp(-z))


def dpo_positive_slope(row, beta, penalty):
    below = row["chosen_logratio"] < 0
    outer = -beta * sigma(-beta * (h(row) - penalty * max(0.0, -row["chosen_logratio"])))
    return {"chosen_logratio": outer * (1 + penalty * below), "rejected_logratio": -outer}


def nca_slope(row, beta):
    c, r = beta * row["chosen_logratio"], beta * row["rejected_logratio"]
    return {"chosen_logratio": beta * (-sigma(-c) + sigma(c) / 2), "rejected_logratio": beta * sigma(r) / 2}


def bco_pair_slope(row, beta, shift):
    c, r = beta * row["chosen_logratio"] - shift, beta * row["rejected_logratio"] - shift
    return {"chosen_logratio": -beta * sigma(-c), "rejected_logratio": beta * sigma(r)}


def apo_down_slope(row, beta):
    p, q = sigma(beta * row["chosen_logratio"]), sigma(beta * h(row))
    return {"chosen_logratio": beta * (p * (1 - p) - q * (1 - q)), "rejected_logratio": beta * q * (1 - q)}


def aot(rows, beta):
    policy = sorted(row["chosen_logp"] - row["rejected_logp"] for row in rows)
    reference = sorted(row["ref_chosen_logp"] - row["ref_rejected_logp"] for row in rows)
    return [-ls(beta * (a - b)) for a, b in zip(policy, reference, strict=True)]


def aot_slope(rows, beta):
    margins = [row["chosen_logp"] - row["rejected_logp"] for row in rows]
    ref_margins = [row["ref_chosen_logp"] - row["ref_rejected_logp"] for row in rows]
    slopes = {name: [0.0] * len(rows) for name in rows[0]}
    by_policy = sorted(range(len(rows)), key=margins.__getitem__)
    by_reference = sorted(range(len(rows)), key=ref_margins.__getitem__)
    for a, b in zip(by_policy, by_reference, strict=True):
        value = -beta * sigma(-beta * (margins[a] - ref_margins[b]))
        slopes["chosen_logp"][a], slopes["rejected_logp"][a] = value, -value
        slopes["ref_chosen_logp"][b], slopes["ref_rejected_logp"][b] = -value, value
    return slopes


def aot_unpaired(rows, beta):
    chosen = sorted(row["chosen_logratio"] for row in rows)
    rejected = sorted(row["rejected_logratio"] for row in rows)
    return [-ls(beta * (a - b)) for a, b in zip(chosen, rejected, strict=True)]


def aot_unpaired_slope(rows, beta):
    chosen, rejected = ([row[f"{side}_logratio"] for row in rows] for side in ("chosen", "rejected"))
    slopes = {name: [0.0] * len(rows) for name in rows[0]}
    by_chosen, by_rejected = (sorted(range(len(rows)), key=side.__getitem__) for side in (chosen, rejected))
    for a, b in zip(by_chosen, by_rejected, strict=True):
        value = -beta * sigma(-beta * (chosen[a] - rejected[b]))
        slopes["chosen_logratio"][a], slopes["rejected_logratio"][b] = value, -value
    return slopes


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def simpo_slope(row, beta, gamma):
    value = -beta * sigma(gamma - beta * (row["chosen_mean_logp"] - row["rejected_mean_logp"]))
    return {"chosen_mean_logp": value, "rejected_mean_logp": -value}


def cpo_slope(row, beta, alpha):
    value = -beta * sigma(-beta * (row["chosen_logp"] - row["rejected_logp"]))
    return {"chosen_logp": value, "rejected_logp": -value, "chosen_mean_logp": -alpha}


def log_odds(m: float) -> float:
    return math.log(math.exp(m) / (1 - math.exp(m)))


def orpo_slope(row, weight):
    mc, mr = row["chosen_mean_logp"], row["rejected_mean_logp"]
    outer = -weight * sigma(log_odds(mr) - log_odds(mc))
    return {
        "chosen_mean_logp": -1 + outer / (1 - math.exp(mc)),
        "rejected_mean_logp": -outer / (1 - math.exp(mr)),
    }


def asft(row, weight):
    mc, mr = row["chosen_mean_logp"], row["rejected_mean_logp"]
    return -mc + weight * (-ls(log_odds(mc)) - ls(-log_odds(mr)))


def asft_slope(row, weight):
    odds = math.exp(row["rejected_mean_logp"]) / (1 - math.exp(row["rejected_mean_logp"]))
    return {"chosen_mean_logp": -(1 + weight), "rejected_mean_logp": weight * odds}


def mapo_f(x: float) -> float:
    return x / (math.exp(x) - 1)


def mapo(row, beta, snr, num_timesteps):
    lc, lr = -2 * row["chosen_logp"], -2 * row["rejected_logp"]
    return lc - beta * ls(num_timesteps * (mapo_f(snr * lc) - mapo_f(snr * lr)))


def mapo_slope(row, beta, snr, num_timesteps):
    lc, lr = -2 * row["chosen_logp"], -2 * row["rejected_logp"]

    def df(x):
        return (math.exp(x) - 1 - x * math.exp(x)) / (math.exp(x) - 1) ** 2

    outer = -beta * num_timesteps * snr * sigma(-num_timesteps * (mapo_f(snr * lc) - mapo_f(snr * lr)))
    return {"chosen_logp": -2 * (1 + outer * df(snr * lc)), "rejected_logp": 2 * outer * df(snr * lr)}


def dspo(row, beta):
    k = beta * sigma(-beta * h(row))
    return -2 * row["chosen_logp"] + 2 * k * row["chosen_logratio"] + (k**2 - k) * row["chosen_gap"]


def dspo_slope(row, beta):
    wins = sigma(beta * h(row))
    k, slope = beta * (1 - wins), -(beta**2) * wins * (1 - wins)
    outer = (2 * row["chosen_logratio"] + (2 * k - 1) * row["chosen_gap"]) * slope
    return {"chosen_logp": -2.0, "chosen_logratio": 2 * k + outer, "rejected_logratio": -outer, "chosen_gap": k**2 - k}


def chip_margin(row, token_weight):
    seen = row["chosen_logratio"] - row["chosen_other_logratio"]
    return h(row) + seen - token_weight * (row["rejected_token_kl"] - row["chosen_token_kl"])


def chip(row, beta, token_weight):
    return -ls(beta * chip_margin(row, token_weight))


def chip_slope(row, beta, token_weight):
    value = -beta * sigma(-beta * chip_margin(row, token_weight))
    return {
        "chosen_logratio": 2 * value,
        "rejected_logratio": -value,
        "chosen_other_logratio": -value,
        "rejected_token_kl": -token_weight * value,
    }


def v_dpo_margin(row, guidance):
    """The guided log-probs minus the reference's, each from the numbers that the adapter gives."""
    sides = {}
    for side in ("chosen", "rejected"):
        reference = row[f"{side}_logp"] - row[f"{side}_logratio"]
        guided = guidance * row[f"{side}_logp"] - (guidance - 1) * row[f"{side}_other_held"]
        sides[side] = guided - reference
    return sides["chosen"] - sides["rejected"]


def v_dpo(row, beta, guidance):
    return -ls(beta * v_dpo_margin(row, guidance))


def v_dpo_slope(row, beta, guidance):
    """By log-ratio and by logp, which the same log-prob moves together: guidance times in all."""
    value = -beta * sigma(-beta * v_dpo_margin(row, guidance))
    of_logp = (guidance - 1) * value
    return {
        "chosen_logratio": value,
        "rejected_logratio": -value,
        "chosen_logp": of_logp,
        "rejected_logp": -of_logp,
    }


def triple_slope(row, beta, alpha, gamma):
    value = -beta * sigma(gamma - beta * (row["chosen_logp"] - row["rejected_logp"]))
    return {"chosen_logp": value, "rejected_logp": -value, "gold_mean_logp": -alpha}


def pro_terms(row, beta):
    """(candidate, its temperature, {worse candidate: temperature}) from the best to the last but one."""
    labels = row["labels"]
    order = sorted(range(len(labels)), key=lambda i: -labels[i])
    for place, i in enumerate(order[:-1]):
        temperatures = {j: beta * (labels[i] - labels[j]) for j in order[place + 1 :]}
        yield i, max(temperatures.values()), temperatures


def pro(row, beta, sft_weight):
    s, best = row["candidate_mean_logp"], max(range(len(row["labels"])), key=row["labels"].__getitem__)
    total = -sft_weight * (len(s) - 1) ** 2 * row["candidate_logp"][best]
    for i, own, worse in pro_terms(row, beta):
        total += math.log(math.exp(s[i] * own) + sum(math.exp(s[j] * t) for j, t in worse.items())) - s[i] * own
    return total


def pro_slope(row, beta, sft_weight):
    s, best = row["candidate_mean_logp"], max(range(len(row["labels"])), key=row["labels"].__getitem__)
    slopes, of_best = [0.0] * len(s), [0.0] * len(s)
    of_best[best] = -sft_weight * (len(s) - 1) ** 2
    for i, own, worse in pro_terms(row, beta):
        total = math.exp(s[i] * own) + sum(math.exp(s[j] * t) for j, t in worse.items())
        slopes[i] += own * (math.exp(s[i] * own) / total - 1)
        for j, t in worse.items():
            slopes[j] += t * math.exp(s[j] * t) / total
    return {"candidate_mean_logp": slopes, "candidate_logp": of_best}


def plackett_luce(row, beta):
    z = [beta * x for x in row["candidate_logratio"]]
    order = sorted(range(len(z)), key=lambda i: -row["labels"][i])
    return -sum(z[i] - math.log(sum(math.exp(z[j]) for j in order[place:])) for place, i in enumerate(order[:-1]))


def plackett_luce_slope(row, beta):
    z = [beta * x for x in row["candidate_logratio"]]
    order = sorted(range(len(z)), key=lambda i: -row["labels"][i])
    slopes = [-beta] * len(z)
    for place in range(len(z)):
        total = sum(math.exp(z[j]) for j in order[place:])
        for j in order[place:]:
            slopes[j] += beta * math.exp(z[j]) / total
    return {"candidate_logratio": slopes}


def softmax(values):
    exps = [math.exp(v) for v in values]
    return [e / sum(exps) for e in exps]


def listnet(row, beta, tau):
    target = softmax([label / tau for label in row["labels"]])
    predicted = softmax([beta * x for x in row["candidate_logratio"]])
    return -sum(t * math.log(p) for t, p in zip(target, predicted, strict=True))


def listnet_slope(row, beta, tau):
    target = softmax([label / tau for label in row["labels"]])
    predicted = softmax([beta * x for x in row["candidate_logratio"]])
    return {"candidate_logratio": [beta * (p - t) for t, p in zip(target, predicted, strict=True)]}


def lambda_weights(row):
    x, psi = row["candidate_logratio"], row["labels"]
    rank = {i: place for place, i in enumerate(sorted(range(len(x)), key=lambda i: -x[i]), start=1)}
    for i in range(len(x)):
        for j in range(len(x)):
            if psi[i] > psi[j]:
                gain = abs(2 ** psi[i] - 2 ** psi[j])
                yield i, j, gain * abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))


def lambda_rank(row, beta):
    x = row["candidate_logratio"]
    return sum(w * -ls(beta * (x[i] - x[j])) for i, j, w in lambda_weights(row))


def lambda_rank_slope(row, beta):
    x = row["candidate_logratio"]
    slopes = [0.0] * len(x)
    for i, j, w in lambda_weights(row):
        value = -w * beta * sigma(-beta * (x[i] - x[j]))
        slopes[i] += value
        slopes[j] -= value
    return {"candidate_logratio": slopes}


def ranklist_terms(row, beta, skip):
    x = row["candidate_logratio"]
    order = sorted(range(len(x)), key=lambda i: -row["labels"][i])
    for a, i in enumerate(order):
        for b, j in enumerate(order):
            if 0 < b - a <= skip:
                yield i, j, math.exp(-beta * (x[i] - x[j]))


def ranklist(row, beta, skip):
    return math.log(1 + sum(term for _, _, term in ranklist_terms(row, beta, skip)))


def ranklist_slope(row, beta, skip):
    total = 1 + sum(term for _, _, term in ranklist_terms(row, beta, skip))
    slopes = [0.0] * len(row["labels"])
    for i, j, term in ranklist_terms(row, beta, skip):
        slopes[i] -= beta * term / total
        slopes[j] += beta * term / total
    return {"candidate_logratio": slopes}


def kto_value(row, beta, kl):
    gain = beta * (row["logratio"] - kl)
    return gain if row["desirable"] else -gain


def kto(row, beta, kl, desirable_weight, undesirable_weight):
    weight = desirable_weight if row["desirable"] else undesirable_weight
    return weight * (1 - sigma(kto_value(row, beta, kl)))


def kto_slope(row, beta, kl, desirable_weight, undesirable_weight):
    p = sigma(kto_value(row, beta, kl))
    signed = desirable_weight if row["desirable"] else -undesirable_weight
    return {"logratio": -signed * beta * p * (1 - p)}


def diffusion_kto(row, beta, kl, utility, desirable_weight, undesirable_weight):
    v = kto_value(row, beta, kl)
    gain = {"kahneman_tversky": sigma(v), "loss_averse": ls(v), "risk_seeking": -ls(-v)}[utility]
    return (desirable_weight if row["desirable"] else undesirable_weight) * (1 - gain)


def diffusion_kto_slope(row, beta, kl, utility, desirable_weight, undesirable_weight):
    v = kto_value(row, beta, kl)
    gain = {"kahneman_tversky": sigma(v) * sigma(-v), "loss_averse": sigma(-v), "risk_seeking": sigma(v)}[utility]
    return {"logratio": -(desirable_weight if row["desirable"] else -undesirable_weight) * beta * gain}


def bco(row, beta, shift, weight):
    reward = beta * row["logratio"] - shift
    return -ls(reward) if row["desirable"] else -weight * ls(-reward)


def bco_slope(row, beta, shift, weight):
    reward = beta * row["logratio"] - shift
    return {"logratio": -beta * sigma(-reward) if row["desirable"] else weight * beta * sigma(reward)}
