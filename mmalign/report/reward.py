"""The report of a reward model: accuracy under every rule, reliability, best of n, probes, and its surest mistakes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmalign.evaluation.calibration import Reliability
from mmalign.evaluation.reward import INTERVAL, RewardEvaluation
from mmalign.report.figures import Curve, calibration_chart, line_chart
from mmalign.report.markup import NOTHING, Markup, join, markup
from mmalign.report.page import POLICY, picture_figure
from mmalign.report.style import CSS

Mistake = tuple[str, Image.Image]


def write_reward_report(evaluation: RewardEvaluation, file: Path, mistakes: Sequence[Mistake] = ()) -> Path:
    """One HTML file without scripts. ``mistakes``: captions and pictures of pairs the reward was surely wrong about."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.write_text(reward_page(evaluation, mistakes), encoding="utf-8")
    return unfinished.replace(file)


def reward_page(evaluation: RewardEvaluation, mistakes: Sequence[Mistake] = ()) -> str:
    """The whole page as HTML text."""
    title = f"{evaluation.reward} {evaluation.version}".strip()
    sections = join(
        [_rules(evaluation), _calibration(evaluation), _ranking(evaluation), _probes(evaluation), _mistakes(mistakes)]
    )
    notes = join(markup('<p class="note">{}</p>', note) for note in evaluation.notes)
    return markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="{}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>{} · mmalign</title><style>{}</style></head>\n<body>\n"
        '<header><p class="overline">mmalign reward evaluation</p><h1>{}</h1><p>{}</p>'
        '<p class="quiet">Data: {}. Scale: {}.</p></header>\n<main>{}{}</main>\n'
        "<footer>Written by mmalign.</footer>\n</body></html>\n",
        POLICY, title, Markup(CSS), title, evaluation.summary(), evaluation.data, evaluation.scale or "not said",
        notes, sections,
    ).text  # fmt: skip


def _rules(evaluation: RewardEvaluation) -> Markup:
    rows = [
        [one.rule, f"{one.value:.4f}", "" if one.low is None else f"{one.low:.4f} to {one.high:.4f}", one.average,
         one.human_ties, one.model_ties, one.n_pairs, one.n_groups, one.source]
        for one in evaluation.accuracies
    ]  # fmt: skip
    first = evaluation.accuracies[0]
    intro = (
        f"The same scores under every rule. {first.n_human_ties} pairs were tied by people, {first.n_model_ties} by "
        f"the model. Intervals: {INTERVAL}, {evaluation.bootstrap} resamples of {evaluation.n_prompts} prompts."
    )
    columns = ["rule", "accuracy", "interval", "mean", "human ties", "model ties", "pairs", "groups", "as in"]
    return _section("Pairwise accuracy", intro, _table(columns, rows))


def _calibration(evaluation: RewardEvaluation) -> Markup:
    found = evaluation.calibration
    stages = [("As given", found.as_given), ("Temperature fitted", found.fitted)]
    stages += [("Fitted, on prompts not seen", found.held_out)] if found.held_out else []
    charts = join(_reliability(name, stage) for name, stage in stages)
    rows = [
        [name, f"{one.temperature:.4g}", f"{one.ece:.4f}", f"{one.brier:.4f}", f"{one.log_loss:.4f}"]
        for name, one in stages
    ]
    table = _table(["", "temperature", "ECE", "Brier", "log-loss"], rows)
    note = markup('<p class="note">{}</p>', found.note) if found.note else NOTHING
    intro = (
        f"p = sigma(score difference / T), against what people chose in {found.pairs} pairs ({found.ties} ties, which "
        "count one half). On the line the reward is as often right as it says; below, it is over-confident."
    )
    return _section("Calibration", intro, markup('{}<div class="charts">{}</div>{}', note, charts, table))


def _reliability(name: str, stage: Reliability) -> Markup:
    pairs = sum(one.pairs for one in stage.bins)
    columns = [(one.confidence, one.accuracy, one.pairs / pairs) for one in stage.bins]
    svg = calibration_chart(f"Reliability: {name}", *np.array(columns).T)
    return markup("<figure><h3>{}, T = {}</h3>{}</figure>", name, f"{stage.temperature:.3g}", svg)


def _ranking(evaluation: RewardEvaluation) -> Markup:
    ranking = evaluation.ranking
    tau = "not defined" if ranking.tau_b is None else f"{ranking.tau_b} over {ranking.n_tau} groups"
    gain = "not defined" if ranking.ndcg is None else f"{ranking.ndcg} over {ranking.n_ndcg} groups"
    intro = (
        f"Kendall tau-b {tau}; NDCG {gain}. Best of n: the expected label of the picture that the reward picks out of "
        "n random ones, beside that of a perfect reward. Each n counts only groups with that many pictures."
    )
    rows = [
        [one.n, one.n_groups, str(one.picked), f"{one.best:.3f}", f"{one.random:.3f}", f"{one.regret:.3f}",
         "" if one.captured is None else f"{one.captured:.1%}"]
        for one in ranking.best_of
    ]  # fmt: skip
    table = _table(["n", "groups", "picked, 95 % interval", "perfect", "random", "regret", "captured"], rows)
    steps = np.array([one.n for one in ranking.best_of], dtype=np.float64)
    curves = [
        Curve("picked", steps, np.array([one.picked.value for one in ranking.best_of]), "accent", held_out=True),
        Curve("perfect", steps, np.array([one.best for one in ranking.best_of]), "base", held_out=True),
    ]
    svg = line_chart("Best of n", curves, across="n")
    legend = markup(
        '<div class="legend"><span style="--key: var(--accent)">picked by the reward</span>'
        '<span style="--key: var(--base)">picked by the labels</span></div>'
    )
    chart = markup('<div class="charts"><figure><h3>Label of the best of n</h3>{}{}</figure></div>', legend, svg)
    return _section("Ranking", intro, markup("{}{}", chart if len(steps) > 2 else NOTHING, table))


def _probes(evaluation: RewardEvaluation) -> Markup:
    if not evaluation.probes:
        return NOTHING
    intro = (
        "How often the reward, and how often people, prefer the picture with more of each dimension. Where the reward "
        "follows saturation, contrast or sharpness more than people do, optimising for it will buy them."
    )
    rows = [
        [one.name, str(one.reward), "" if one.people is None else str(one.people),
         "" if one.tau_b is None else f"{one.tau_b:+.3f}", one.reward.n_pairs]
        for one in evaluation.probes
    ]  # fmt: skip
    return _section("Dimensions", intro, _table(["dimension", "reward", "people", "tau-b", "pairs"], rows))


def _mistakes(mistakes: Sequence[Mistake]) -> Markup:
    if not mistakes:
        return NOTHING
    strip = join(picture_figure(picture, caption) for caption, picture in mistakes)
    intro = "Left what people preferred, right what the reward preferred, largest score difference first."
    return _section("Surest mistakes", intro, markup('<div class="strip" tabindex="0">{}</div>', strip))


def _section(title: str, intro: str, body: Markup) -> Markup:
    return markup('<section><h2>{}</h2><p class="quiet">{}</p>{}</section>', title, intro, body)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    head = join(markup('<th scope="col">{}</th>', column) for column in columns)
    body = join(
        markup('<tr><th scope="row">{}</th>{}</tr>', first, join(markup("<td>{}</td>", cell) for cell in rest))
        for first, *rest in rows
    )
    return markup('<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>', head, body)
