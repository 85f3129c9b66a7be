"""The section of training curves, with what each of them means in plain words."""

from collections.abc import Sequence

import numpy as np

from mmalign.report.figures import Curve, calibration_chart, heat_map, line_chart, smooth
from mmalign.report.markup import NOTHING, Markup, join, markup
from mmalign.report.run import Run, by_timestep, calibration, middles, series

SIDES = {
    "chosen_logratio": "chosen",
    "rejected_logratio": "rejected",
    "desirable_logratio": "chosen",
    "undesirable_logratio": "rejected",
}

DRAWN = {"diversity": "accent", "saturation": "base", "contrast": "chosen", "sharpness": "rejected"}


def curves_section(run: Run) -> Markup:
    """Loss, accuracy, margin, chosen and rejected, by timestep, calibration, stabilisers: those that the log has."""
    charts = [
        _chart(run, "Loss", {"loss": "accent"}, "Averaged over the global batch of each optimizer step."),
        _chart(
            run, "Accuracy", {"accuracy": "accent"}, "Share of pairs whose chosen side has the higher implicit reward; "
            "ties count one half. Of rankings: of pairs of candidates; of single pictures: of those whose log-ratio is "
            "above zero where they are desirable and below where not. The grey line is chance.", guide=0.5,
        ),
        _chart(run, "Margin", {"margin": "accent"}, "Chosen log-ratio minus rejected log-ratio; best minus worst "
            "candidate; mean of desirable minus mean of undesirable pictures.", guide=0.0),
        _sides_chart(run),
        _heat_map(
            run, "margin", "Margin by timestep", "Margin by diffusion timestep: 0 is nearly clean, the top is nearly "
            "noise. Blue is above zero, orange below.",
        ),
        _heat_map(
            run, "accuracy", "Accuracy by timestep", "Blue is above one half, orange below: which noise levels tell "
            "the chosen side from the rejected one.", centre=0.5,
        ),
        _sides_by_timestep(run),
        _calibration(run),
        _chart(run, "Gradient norm", {"grad_norm": "accent"}, "Before clipping. Spikes are the steps to distrust."),
        *_betas(run),
        _chart(
            run, "Safeguard", {"safeguard_factor": "accent"}, "Mean factor on the rejected side's gradient; 1 leaves "
            "it as it is.", guide=1.0,
        ),
        _chart(
            run, "Entanglement", {"output_gradient_cosine": "accent"}, "Cosine between the gradients of the chosen and "
            "the rejected error with respect to the model's output. Towards 1, lowering the rejected side lowers the "
            "chosen one with it.", guide=0.0,
        ),
        _drawn_chart(run),
        _reward_chart(run, "proxy_reward", "Proxy reward of the fixed prompts", "What training follows. Alone it tells "
            "nothing: it rises whether pictures get better or only more to its liking."),
        _reward_chart(run, "held_out_reward", "Held-out reward of the fixed prompts", "What training never sees. Where "
            "it falls while the proxy rises, the model is over-optimised: take the checkpoint at its top."),
    ]  # fmt: skip
    shown = [chart for chart in charts if chart.text]
    notes = event_notes(run)
    if not shown and not notes.text:
        return NOTHING
    intro = "Strong lines are smoothed, faint ones are the logged values, dashed ones are held-out pairs."
    head = markup('<h2>Training</h2><p class="quiet">{}</p>', intro)
    body = [head, notes, displacement_note(run), markup('<div class="charts">{}</div>', join(shown))]
    return markup('<section id="training">{}</section>', join(body))


def event_notes(run: Run) -> Markup:
    """What the run warned of, or was stopped for, with its step."""
    texts = {"stop": "Stopped after step {}: {}", "warn": "Warning at step {}: {}"}
    return join(
        markup('<p class="note">{}</p>', texts["stop" if event.get("action") == "stop" else "warn"].format(
            event["step"], event["message"]))
        for event in run.events
    )  # fmt: skip


def displacement_note(run: Run) -> Markup:
    """Whether the margin grew by raising the chosen side or only by lowering the rejected one faster."""
    _, chosen = series(run.training, "chosen_logratio")
    _, rejected = series(run.training, "rejected_logratio")
    if len(chosen) == 0 or len(rejected) == 0:
        return NOTHING
    end_chosen, end_rejected = smooth(chosen)[-1], smooth(rejected)[-1]
    numbers = f"chosen {end_chosen:+.3g}, rejected {end_rejected:+.3g}"
    if end_chosen >= 0:
        text = (
            f"The chosen log-ratio ends at or above zero ({numbers}): preferred pictures did not become less likely "
            "than under the reference."
        )
    elif end_rejected < end_chosen:
        text = (
            f"Likelihood displacement: both log-ratios end below zero ({numbers}). The margin grew because the "
            "rejected side fell further, while preferred pictures, too, became less likely than under the "
            "reference. Some of this is usual; if pictures got worse, stop earlier, raise beta or add an "
            "sft or anchor term."
        )
    else:
        text = (
            f"The chosen log-ratio ends below zero and below the rejected one ({numbers}): on these pairs the model "
            "moved against the preference. Check the labels and the learning rate."
        )
    return markup('<p class="note">{}</p>', text)


def _sides_chart(run: Run) -> Markup:
    title, explanation = (
        "Chosen and rejected log-ratio",
        "Policy log-prob minus reference log-prob, each side by itself: ",
    )
    keys = {"chosen_logratio": "chosen", "rejected_logratio": "rejected"}
    if not any(len(series(run.training, key)[0]) for key in keys):
        title, explanation = "Chosen and rejected log-prob", "There is no reference, so these are the policy's own: "
        keys = {"chosen_logp": "chosen", "rejected_logp": "rejected"}
    explanation += "a growing margin alone does not tell whether the chosen side rises or both sides fall."
    return _chart(run, title, keys, explanation, guide=0.0 if "chosen_logratio" in keys else None)


def _heat_map(run: Run, quantity: str, title: str, explanation: str, centre: float = 0.0) -> Markup:
    names, steps, values = by_timestep(run.training, quantity)
    if not names:
        return NOTHING
    svg = heat_map(title, names, steps, values, centre=centre)
    return markup("<figure><h3>{}</h3>{}<p>{}</p></figure>", title, svg, explanation)


def _sides_by_timestep(run: Run) -> Markup:
    """The sides' log-ratios over the timesteps, averaged over the last quarter of the run."""
    title, curves = "Log-ratios by timestep, at the end", []
    for quantity, colour in SIDES.items():
        names, steps, values = by_timestep(run.training, quantity)
        if not names:
            continue
        late = values[:, steps >= steps[-1] - 0.25 * (steps[-1] - steps[0])]
        seen = np.isfinite(late).any(axis=1)
        means = np.array([row[np.isfinite(row)].mean() for row in late[seen]], dtype=np.float64)
        if seen.any():
            curves.append(Curve(quantity.split("_")[0], middles(names)[seen], means, colour))
    if not curves:
        return NOTHING
    explanation = (
        "Mean over the last quarter of the run: where the chosen side rises and the rejected one falls, the preference "
        "was learnt; where both fall, the model only moved away from its reference."
    )
    svg = line_chart(title, curves, guide=0.0, across="timestep")
    return markup("<figure><h3>{}</h3>{}{}<p>{}</p></figure>", title, _legend(curves), svg, explanation)


def _calibration(run: Run) -> Markup:
    found = calibration(run.held_out)
    if found is None:
        return NOTHING
    step, (confidence, accuracy, share) = found
    title = "Calibration of the implicit reward"
    error = float((share * np.abs(confidence - accuracy)).sum() / share.sum())
    explanation = (
        f"Held-out pairs at step {step:.0f}, by how sure sigma(beta x margin) is of the side it favours. On the line "
        f"it is as often right as it says; below, it is over-confident. Expected calibration error {error:.3f}."
    )
    svg = calibration_chart(title, confidence, accuracy, share)
    return markup("<figure><h3>{}</h3>{}<p>{}</p></figure>", title, svg, explanation)


def _betas(run: Run) -> list[Markup]:
    """One chart for each term whose beta is estimated."""
    keys = dict.fromkeys(key for line in run.training for key in line if key.startswith("beta_"))
    explanation = "Set so that a typical margin keeps the gradient factor asked for; it begins at a given value."
    return [_chart(run, f"Beta of {key.removeprefix('beta_')}", {key: "accent"}, explanation) for key in keys]


def _drawn_chart(run: Run) -> Markup:
    curves = [
        Curve(name, *series(run.drawn, name), colour)
        for name, colour in DRAWN.items()
        if len(series(run.drawn, name)[0])
    ]
    if not curves:
        return NOTHING
    title, explanation = (
        "Pictures of the fixed prompts",
        "Diversity is the mean distance between the pictures, saturation their mean colourfulness, contrast and "
        "sharpness the spread of brightness and its change between neighbouring pixels. Alignment that goes too far "
        "lowers the first and distorts the others.",
    )
    svg = line_chart(title, curves)
    return markup("<figure><h3>{}</h3>{}{}<p>{}</p></figure>", title, _legend(curves), svg, explanation)


def _reward_chart(run: Run, key: str, title: str, explanation: str) -> Markup:
    steps, values = series(run.drawn, key)
    if not len(steps):
        return NOTHING
    svg = line_chart(title, [Curve(key, steps, values, "accent", held_out=True)])
    return markup("<figure><h3>{}</h3>{}<p>{}</p></figure>", title, svg, explanation)


def _chart(run: Run, title: str, keys: dict[str, str], explanation: str, guide: float | None = None) -> Markup:
    curves = []
    for key, colour in keys.items():
        for lines, held_out in ((run.training, False), (run.held_out, True)):
            steps, values = series(lines, key)
            if len(steps):
                name = key.split("_")[0] if len(keys) > 1 else "training"
                name = name if not held_out else f"{name}, held-out" if len(keys) > 1 else "held-out"
                curves.append(Curve(name, steps, values, colour, held_out))
    if not curves:
        return NOTHING
    svg = line_chart(title, curves, guide=guide)
    return markup("<figure><h3>{}</h3>{}{}<p>{}</p></figure>", title, _legend(curves), svg, explanation)


def _legend(curves: Sequence[Curve]) -> Markup:
    keys = [
        markup(
            '<span class="{}" style="--key: var(--{})">{}</span>',
            "dashed" if curve.held_out else "",
            curve.colour,
            curve.name,
        )
        for curve in curves
    ]
    return markup('<div class="legend">{}</div>', join(keys)) if len(curves) > 1 else NOTHING
