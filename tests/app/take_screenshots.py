"""The screenshots of the documentation: the app on a model and what a run made of it, in a real browser.

    mmalign quickstart --out runs/quickstart
    mmalign quickstart --task vlm --out runs/quickstart
    python tests/app/take_screenshots.py --answers runs/quickstart/vlm_visual_seed0 --out docs/images

Every picture and answer on them is of the two models. The votes behind the leaderboard are cast by the playground's
oracle, in the name of four voters: nobody's opinion, which the captions of the documentation have to say.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="mmalign-screenshots-")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from browsing import ARGUMENTS, CHROMIUM, SIZES, open_tab, screenshot
from conftest import serve_context
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from voting import choice, oracle_votes

from app import serve
from app.arena import Arena
from app.settings import quickstart_run

VOTERS = 4


def main() -> None:
    """Read the options, serve the pair, vote, and take the pictures."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--aligned", type=Path, metavar="RUN_DIR", help="default: the newest of runs/quickstart")
    options.add_argument("--answers", type=Path, metavar="RUN_DIR", help="a run of tiny-llava; default: none is shown")
    options.add_argument("--out", type=Path, default=Path("docs/images"))
    options.add_argument("--prompt", default="a large striped blue heart on a black background")
    options.add_argument("--votes", type=int, default=48)
    chosen = options.parse_args()
    aligned = chosen.aligned or quickstart_run(Path("runs/quickstart"))
    if aligned is None:
        sys.exit("error: no aligned weights in runs/quickstart; run `make quickstart`, or give --aligned RUN_DIR")
    with tempfile.TemporaryDirectory() as folder:
        given = ["--base", "playground/tiny-sdxl", "--aligned", str(aligned), "--store", folder]
        ctx = serve.context(serve.parser().parse_args(given))
        voters = [ctx.arena.new_voter() for _ in range(VOTERS)]
        oracle_votes(ctx.arena, voters, chosen.votes, slips=0.1, rng=random.Random(0))
        served = serve_context(ctx)
        take(served, chosen.out, chosen.prompt)
        served.app.get_blocks().close(verbose=False)
        ctx.arena.close()
    if chosen.answers is not None:
        with tempfile.TemporaryDirectory() as folder:
            given = ["--base", "playground/tiny-llava", "--aligned", str(chosen.answers), "--store", folder]
            answering = serve_context(serve.context(serve.parser().parse_args(given)))
            take(answering, chosen.out, None)
            answering.app.get_blocks().close(verbose=False)
            answering.ctx.arena.close()
    shutil.rmtree(os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)


def take(served: SimpleNamespace, out: Path, prompt: str | None) -> None:
    """Compare and Arena of the first visit, and the leaderboard, on a desktop and a phone; of answers the Arena."""
    expect.set_options(timeout=120_000)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for kind, size in SIZES.items():
            page = browser.new_context(**size, device_scale_factor=1).new_page()
            page.set_default_timeout(120_000)
            page.goto(served.url, wait_until="domcontentloaded")
            if prompt is None:
                look_at_answers(page, kind, out)
            else:
                look(page, kind, out, prompt, served.ctx.arena)
        browser.close()


def look_at_answers(page: Any, kind: str, out: Path) -> None:
    """Two answers to one question, and a blind pair of them."""
    expect(page.locator("#answers")).to_be_visible()
    screenshot(page, out / f"app-answers-{kind}.png")
    open_tab(page, "Arena")
    expect(page.locator("#arena-left .answer")).to_be_visible()
    screenshot(page, out / f"app-answers-arena-{kind}.png")


def look(page: Any, kind: str, out: Path, prompt: str, arena: Arena) -> None:
    """One visitor's way through the tabs."""
    expect(page.locator("#picture-left img")).to_be_visible()
    page.locator("#prompt textarea").fill(prompt)
    page.locator("#generate").click()
    expect(page.locator("#picture-left img")).to_have_attribute("alt", f"base: {prompt}")
    expect(page.locator("#seed-grid img")).to_have_count(8)
    screenshot(page, out / f"app-compare-{kind}.png")
    open_tab(page, "Arena")
    expect(page.locator("#arena-left img")).to_be_visible()
    shown = list(arena.store.battles())[-1].shown
    said = choice(shown[0].prompt, [Image.open(side.file) for side in shown])
    page.locator("body").press({"left": "ArrowLeft", "tie": "ArrowDown", "right": "ArrowRight"}[said])
    expect(page.locator("#receipt")).to_contain_text("Vote kept")
    screenshot(page, out / f"app-arena-{kind}.png")
    open_tab(page, "Leaderboard")
    expect(page.locator("#board table").first).to_be_visible()
    screenshot(page, out / f"app-leaderboard-{kind}.png")


if __name__ == "__main__":
    main()
