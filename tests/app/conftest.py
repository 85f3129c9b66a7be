"""A gallery of drawn pictures, the app on it, and that app served on a free port of this machine."""

import argparse
import importlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from browsing import ARGUMENTS, CHROMIUM
from PIL import Image

# Before Gradio is imported: its cache is a folder of this run alone.
os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="mmalign-app-tests-")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from app.arena import Arena
from app.context import Context
from app.gallery import GallerySource
from app.limits import RateLimit
from app.scoring import Scorers
from mmalign.arena import VoteStore
from mmalign.cli.manifest import write_pictures
from mmalign.playground.captions import parse
from mmalign.playground.renderer import render
from mmalign.playground.scene import arrange, held_out_prompts, sample_scene

SEEDS = [0, 1, 2, 3]


def draw_gallery(out: Path, prompts: int = 6) -> list[Path]:
    """``OUT/base`` draws other scenes than the prompts say, ``OUT/aligned`` what they say."""
    texts = held_out_prompts("single", 20 + prompts)[19 : 19 + prompts]  # the first two are held out from exports
    every_prompt = [text for text in texts for _ in SEEDS]
    every_seed = SEEDS * prompts
    rng = np.random.default_rng(0)
    wrong = [Image.fromarray(render(sample_scene(rng, "single"))) for _ in every_prompt]
    right = [Image.fromarray(render(arrange(parse(text), rng))) for text in every_prompt]
    write_pictures(out, {"base": wrong, "aligned": right}, every_prompt, every_seed, {"steps": 12, "guidance": 1.0})
    return [out / "base", out / "aligned"]


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright; where there is none, the test skips and says so."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (apt-get install chromium, or CHROMIUM=PATH)")
    playwright = importlib.import_module("playwright.sync_api")
    playwright.expect.set_options(timeout=60_000)
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


def context_on(folders: list[Path], store: Path, **changes: Any) -> Context:
    return context_of(GallerySource(folders), store, **changes)


def context_of(source: Any, store: Path, **changes: Any) -> Context:
    """The app on ``source``, with limits that no test meets unless it sets them."""
    arena = Arena(source, VoteStore(store / "votes.db"), store / "pictures")
    generous = {name: RateLimit(100_000, name) for name in ("generations", "votes", "reads")}
    return Context(source, Scorers(["oracle"]), arena, **{**generous, **changes})


@pytest.fixture
def ctx(gallery: list[Path], tmp_path: Path) -> Iterator[Context]:
    made = context_on(gallery, tmp_path / "store")
    yield made
    made.arena.close()
    made.arena.store.close()


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def serve_context(ctx: Context, *more: str) -> SimpleNamespace:
    """The app of ``ctx`` served as ``python -m app`` serves it (with the options ``more``), on a free port."""
    from app.serve import launch_options, parser, serve

    store = ctx.arena.store.path.parent
    options: argparse.Namespace = parser().parse_args(["--port", str(free_port()), "--store", str(store), *more])
    app, url, _ = serve(ctx, {**launch_options(options), "prevent_thread_lock": True, "quiet": True})
    return SimpleNamespace(app=app, url=url.rstrip("/"), ctx=ctx, store=store)


@pytest.fixture(scope="session")
def served(gallery: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    made = serve_context(context_on(gallery, tmp_path_factory.mktemp("served")))
    yield made
    made.app.get_blocks().close(verbose=False)
    made.ctx.arena.close()
