"""The report of a run folder with realistic curves: what is in it, what is left out, and what must not get in."""

import html
import json
import re

import matplotlib
import numpy as np
import pytest
from PIL import Image

from mmalign.evaluation import ImageScores, evaluate_images
from mmalign.pictures import comparison_grid, grid
from mmalign.report import write_report
from mmalign.report.curves import displacement_note
from mmalign.report.figures import smooth, thin
from mmalign.report.run import by_timestep, read_run, series

EVIL = '<script>alert("x")</script> $\\frac{1}{$ & {} "quoted"'
BINS = [f"{low}-{low + 100}" for low in range(0, 1000, 100)]


def training_lines(steps=300, seed=0):
    """Log lines in the shape of Diffusion-DPO: noisy, both sides falling, the middle timesteps learning most."""
    rng = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        done = 1 - np.exp(-step / 90)
        chosen, rejected = -2e-5 * done + rng.normal(0, 1e-5), -9e-5 * done + rng.normal(0, 1.4e-5)
        shape = np.exp(-(((np.arange(10) - 4) / 2.5) ** 2)) - 0.15
        margins = 1e-4 * done * shape + rng.normal(0, 2e-5, 10)
        yield {
            "step": step, "loss": 0.6931 - 0.14 * done + rng.normal(0, 0.05), "margin": chosen - rejected,
            "accuracy": float(np.clip(0.5 + 0.2 * done + rng.normal(0, 0.1), 0, 1)), "chosen_logratio": chosen,
            "rejected_logratio": rejected, "learning_rate": 1e-4, "grad_norm": 0.4 + 0.1 * rng.exponential(),
            "seconds": 0.7, "unknown": [1],
            "margin_by_timestep": dict(zip(BINS, np.where(rng.random(10) < 0.3, None, margins), strict=True)),
        }  # fmt: skip
        if step % 50 == 0:
            yield {
                "step": step, "split": "held_out", "loss": 0.69 - 0.08 * done, "accuracy": 0.5 + 0.14 * done,
                "margin": 5e-5 * done, "chosen_logratio": -2e-5 * done, "rejected_logratio": -7e-5 * done,
            }  # fmt: skip


def flat(rng):
    return Image.new("RGB", (32, 32), tuple(int(c) for c in rng.integers(40, 220, 3)))


class Red:
    name = "red <b>"

    def __call__(self, prompts, images):
        reds = [image.getpixel((0, 0))[0] for image in images]
        return ImageScores([red / 255 for red in reds], [{"red": red > 99, EVIL: red > 160} for red in reds])


def make_run(folder, *, steps=300):
    rng = np.random.default_rng(0)
    base = [[flat(rng) for _ in range(2)] for _ in range(12)]
    aligned = [[Image.blend(p, Image.new("RGB", p.size, (255, 90, 90)), 0.4) for p in row] for row in base]
    prompts = [f"prompt {EVIL} {n}" for n in range(12)]
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in training_lines(steps)))
    (folder / "config.yaml").write_text(f"model: {{name: playground/tiny-sdxl}}\n# {EVIL}\n")
    versions = {"command": f"mmalign train recipe.yaml {EVIL}", "git_commit": "abc123", "packages": {"torch": "2.13"}}
    (folder / "versions.json").write_text(json.dumps(versions))
    (folder / "data.txt").write_text(f"rows 24\nties dropped 3 {EVIL}\n")
    (folder / "evaluation.json").write_text(evaluate_images(base, aligned, prompts, Red(), bootstrap=200).to_json())
    comparison_grid(base[:3], aligned[:3], ["a", "b", "c"]).save(folder / "before_after.png")
    (folder / "pictures").mkdir()
    for step in range(0, steps + 1, 20):
        grid([[flat(rng), flat(rng)]]).save(folder / "pictures" / f"step_{step:06d}.png")
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "dpo <i>run</i>")


@pytest.fixture(scope="module")
def page(run_folder):
    path = write_report(run_folder)
    assert path == run_folder / "report.html"
    return path.read_text(encoding="utf-8")


def test_every_part_of_the_run_is_there(page):
    for anchor in ("before-after", "measured", "training", "pictures", "data", "reproduce"):
        assert f'<section id="{anchor}"' in page
        assert f'href="#{anchor}"' in page
    charts = re.findall(r'<svg role="img" aria-label="([^"]*)"', page)
    assert charts == [
        "Share of pictures that get each attribute right", "Loss", "Accuracy", "Margin",
        "Chosen and rejected log-ratio", "Margin by timestep", "Gradient norm",
    ]  # fmt: skip
    assert "git_commit" in page
    assert "packages / torch" in page
    assert "Not shown" not in page


def test_the_numbers_are_those_of_the_evaluation(page, run_folder):
    wins = read_run(run_folder).evaluation.win_rate
    assert wins.low > 0.5
    assert f"95 % interval {wins.low:.3f} to {wins.high:.3f}, 12 prompts" in page
    assert "The aligned model is better" in page


def test_nothing_untrusted_is_markup(page):
    assert "<script" not in page.lower()
    assert "<i>run" not in page
    assert "<b>" not in page.replace("<b>base always wins</b>", "")
    assert page.count("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;") >= 4  # config, command, data, attribute


def test_the_page_asks_nothing_of_the_network(page):
    assert "default-src 'none'; img-src data:" in html.unescape(page)
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:|#)""", page)
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page


def test_charts_take_the_page_s_colours_in_light_and_dark(page):
    assert "prefers-color-scheme: dark" in page
    assert "stroke: var(--chosen)" in page
    assert "stroke: var(--rejected)" in page
    colours = set(re.findall(r"(?:stroke|fill): (#[0-9a-f]{6})", page))
    assert colours == set()


def test_long_series_of_pictures_are_sampled_ends_included(page):
    steps = re.findall(r"<figcaption>step (\d+)</figcaption>", page)
    assert len(steps) == 8
    assert (steps[0], steps[-1]) == ("0", "300")
    assert "8 of 16 grids" in page


def test_the_same_run_gives_the_same_bytes_and_no_other_file(page, run_folder):
    before = sorted(path.name for path in run_folder.iterdir())
    assert write_report(run_folder).read_text(encoding="utf-8") == page
    assert sorted(path.name for path in run_folder.iterdir()) == before


def test_matplotlib_is_left_as_it_was(run_folder):
    matplotlib.rcParams["font.size"] = 23
    try:
        before = dict(matplotlib.rcParams)
        write_report(run_folder)
        assert dict(matplotlib.rcParams) == before
    finally:
        matplotlib.rcdefaults()


def test_missing_parts_are_absent_and_broken_ones_are_named(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.7}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo')
    (tmp_path / "evaluation.json").write_text("{")
    (tmp_path / "before_after.png").write_bytes(b"half a picture")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert re.findall(r'<section id="([^"]*)"', text) == ["training"]
    assert re.findall(r'<svg role="img" aria-label="([^"]*)"', text) == ["Loss"]
    for note in ("log.jsonl: 1 unreadable line skipped", "evaluation.json could not be read", "before_after.png could"):
        assert note in text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no run folder at"):
        write_report(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds nothing of a run"):
        write_report(tmp_path)


def test_a_resumed_run_shows_its_latest_line_per_step(tmp_path):
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 2, "loss": 5}\n'
        '{"step": 2, "split": "held_out", "loss": 9}\n'
    )
    run = read_run(tmp_path)
    steps, losses = series(run.training, "loss")
    assert (steps.tolist(), losses.tolist()) == ([1, 2], [3, 5])
    assert series(run.held_out, "loss")[1].tolist() == [9]


def test_timestep_bins_may_be_named_or_listed():
    lines = [
        {"step": 1, "margin_by_timestep": {"500-1000": 2.0, "0-500": None}},
        {"step": 2, "margin_by_timestep": [1.0, float("nan")]},
        {"step": 3},
    ]
    names, steps, values = by_timestep(lines)
    assert names == ["0-500", "500-1000"]
    assert steps.tolist() == [1, 2]
    assert np.array_equal(values, [[np.nan, 1.0], [2.0, np.nan]], equal_nan=True)


def test_smoothing_keeps_a_straight_line_s_middle_and_a_constant_whole():
    assert smooth(np.full(100, 2.5)) == pytest.approx(np.full(100, 2.5))
    line = np.linspace(0, 1, 120)
    assert smooth(line)[15:-15] == pytest.approx(line[15:-15])
    noisy = np.random.default_rng(0).normal(size=1200)
    assert smooth(noisy).std() < 0.25
    assert smooth(noisy[:12]) is not None
    assert len(thin(np.arange(12345.0))) == 500
    assert thin(np.arange(1000.0))[0] == 0.5


@pytest.mark.parametrize(
    ("chosen", "rejected", "said"),
    [(1.0, -1.0, "at or above zero"), (-1.0, -2.0, "Likelihood displacement"), (-2.0, -1.0, "against the preference")],
)
def test_the_note_says_what_the_log_ratios_did(tmp_path, chosen, rejected, said):
    (tmp_path / "log.jsonl").write_text(
        json.dumps({"step": 1, "chosen_logratio": chosen, "rejected_logratio": rejected}) + "\n"
    )
    assert said in displacement_note(read_run(tmp_path)).text


def test_a_run_without_a_reference_shows_log_probs(tmp_path):
    lines = [{"step": step, "chosen_logp": -0.1, "rejected_logp": -0.2} for step in (1, 2)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert 'aria-label="Chosen and rejected log-prob"' in text
    assert "There is no reference" in text
