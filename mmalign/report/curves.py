"""The section of training curves, with what each of them means in plain words."""

from collections.abc import Sequence

from mmalign.report.figures import Curve, heat_map, line_chart, smooth
from mmalign.report.markup import NOTHING, Markup, join, markup
from mmalign.report.run import Run, by_timestep, series


def curves_section(run: Run) -> Markup:
    """Loss, accuracy, margin, chosen and rejected, margin by timestep: those that the log has."""
    charts = [
        _chart(run, "Loss", {"loss": "accent"}, "Averaged over the global batch of each optimizer step."),
        _chart(
            run, "Accuracy", {"accuracy": "accent"}, "Share of pairs whose chosen side has the higher implicit reward; "
            "ties count one half. The grey line is chance.", guide=0.5,
        ),
        _chart(run, "Margin", {"margin": "accent"}, "Chosen log-ratio minus rejected log-ratio.", guide=0.0),
        _sides_chart(run),
        _timestep_chart(run),
        _chart(run, "Gradient norm", {"grad_norm": "accent"}, "Before clipping. Spikes are the steps to distrust."),
    ]  # fmt: skip
    shown = [chart for chart in charts if chart.text]
    if not shown:
        return NOTHING
    intro = "Strong lines are smoothed, faint ones are the logged values, dashed ones are held-out pairs."
    head = markup('<h2>Training</h2><p class="quiet">{}</p>', intro)
    body = [head, displacement_note(run), markup('<div class="charts">{}</div>', join(shown))]
    return markup('<section id="training">{}</section>', join(body))


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


def _timestep_chart(run: Run) -> Markup:
    names, steps, values = by_timestep(run.training)
    if not names:
        return NOTHING
    explanation = (
        "Margin by diffusion timestep: 0 is nearly clean, the top is nearly noise. Blue is above zero, orange below."
    )
    svg = heat_map("Margin by timestep", names, steps, values)
    return markup("<figure><h3>Margin by timestep</h3>{}<p>{}</p></figure>", svg, explanation)


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
