"""A person at the page where pictures take time, a login is asked for, or models answer questions."""

import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from browsing import SIZES, fits, open_tab, visit
from conftest import context_of, serve_context
from drawing import CannedAnswers, DrawnSource

from app.limits import Cancelled
from mmalign.arena import HoldOut

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")


def serving(source: Any, store: Path, *more: str) -> Iterator[SimpleNamespace]:
    made = serve_context(context_of(source, store), *more)
    yield made
    made.app.get_blocks().close(verbose=False)
    made.ctx.arena.close()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    yield from serving(DrawnSource(), tmp_path_factory.mktemp("live"))


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    yield from serving(CannedAnswers(), tmp_path_factory.mktemp("answering"))


def until(true: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def test_settings_reach_the_model_and_mistakes_are_told(browser: Any, live: SimpleNamespace, tmp_path: Path) -> None:
    expect, source = playwright.expect, live.ctx.source
    with visit(browser, "phone", live.url) as page:
        expect(page.locator("#compare-message")).to_contain_text("No pictures yet")
        page.locator("#prompt textarea").fill("   ")
        page.locator("#generate").click()
        expect(page.get_by_text("prompt is empty")).to_be_visible()
        example = source.prompts()[1]
        page.locator("#compare").get_by_text(example).first.click()
        expect(page.locator("#prompt textarea")).to_have_value(example)
        page.get_by_label("Seed", exact=True).fill("41")
        page.get_by_text("Sampling").click()
        page.get_by_label("number input for Steps").fill("3")
        page.get_by_label("number input for Guidance").fill("4.5")
        page.get_by_label("number input for LoRA scale").fill("0.5")
        page.get_by_label("Negative prompt").fill("blur")
        page.locator("#generate").click()
        expect(page.locator("#picture-right img")).to_have_attribute("alt", f"aligned: {example}")
        asked = source.asked[-1]
        assert (asked.prompt, asked.seeds, asked.negative_prompt) == (example, (41,), "blur")
        assert (asked.steps, asked.guidance, asked.lora_scale) == (3, 4.5, 0.5)
        expect(page.locator("#caption-left")).to_contain_text("seed 41")
        page.locator("#new-seed").click()
        expect(page.get_by_label("Seed", exact=True)).not_to_have_value("41")
        with page.expect_download() as download:
            page.locator("#download").click()
        download.value.save_as(tmp_path / "pictures.zip")
        assert "base/0000_seed41.png" in zipfile.ZipFile(tmp_path / "pictures.zip").namelist()
        open_tab(page, "Leaderboard")
        expect(page.locator("#board")).to_contain_text("No votes yet")
        open_tab(page, "Dataset")
        expect(page.locator("#dataset-rows")).to_contain_text("Nothing here")
        assert fits(page)


def test_progress_is_told_others_wait_in_turn_and_stop_stops(browser: Any, live: SimpleNamespace) -> None:
    expect, source = playwright.expect, live.ctx.source
    source.seconds = 0.2
    source.begun.clear()
    source.stopped.clear()
    with visit(browser, "desktop", live.url) as first, visit(browser, "desktop", live.url) as second:
        first.get_by_text("Sampling").click()
        first.get_by_label("number input for Steps").fill("100")  # forty seconds, were it not stopped
        first.locator("#generate").click()
        expect(first.get_by_text("base: step")).to_be_visible()
        assert source.begun.is_set()
        second.locator("#generate").click()
        expect(second.get_by_text("queue:")).to_be_visible()
        first.locator("#stop").click()
        expect(first.locator("#compare-message")).to_contain_text("Stopped")
        until(lambda: len(source.stopped) == 1)
        assert isinstance(source.stopped[0], Cancelled)
        # Whoever waited is served, and the one who stopped can go on.
        expect(second.locator("#picture-left img")).to_be_visible()
        source.seconds = 0.0
        first.locator("#generate").click()
        expect(first.locator("#picture-left img")).to_be_visible()
        expect(first.locator("#compare-message")).to_be_hidden()
        source.seconds = 0.2
        source.begun.clear()
        first.get_by_label("number input for Steps").fill("99")
        first.locator("#generate").click()
        until(source.begun.is_set)
        first.close()  # whoever goes away does not keep the models busy
        until(lambda: len(source.stopped) == 2)
    source.seconds = 0.0


def test_a_login_is_asked_for_and_nothing_is_there_without(browser: Any, tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    users.write_text("eva:correct horse\n")
    expect = playwright.expect
    for served in serving(DrawnSource(), tmp_path / "store", "--auth", str(users)):
        with httpx.Client(base_url=served.url, timeout=60) as stranger:
            for route in ("/config", "/gradio_api/info", "/gradio_api/file=x.png"):
                assert stranger.get(route).status_code in (401, 403, 404), route
            call = stranger.post("/gradio_api/call/voter", json={"data": []})
            assert call.status_code == 401
            assert stranger.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0}).status_code == 401
        assert served.ctx.arena.store.counts()["battles"] == 0
        with visit(browser, "desktop", served.url) as page:
            for password in ("wrong horse", "correct horse"):
                expect(page.locator("#generate")).to_have_count(0)
                page.get_by_label("username").fill("eva")
                page.get_by_label("password").fill(password)
                page.get_by_role("button", name="Login").click()
                if password == "wrong horse":
                    expect(page.get_by_text("Incorrect Credentials")).to_be_visible()
            expect(page.locator("#generate")).to_be_visible()
            open_tab(page, "Arena")
            expect(page.locator("#arena-left img")).to_be_visible()


@pytest.mark.parametrize("kind", sorted(SIZES))
def test_two_answers_are_compared_voted_on_and_exported(
    kind: str, browser: Any, answering: SimpleNamespace, tmp_path: Path
) -> None:
    expect, store = playwright.expect, answering.ctx.arena.store
    with visit(browser, kind, answering.url) as page:
        expect(page.locator("#answers mark").first).to_contain_text("red")
        page.locator("#question input, #question textarea").fill("what is where ?")
        page.locator("#ask-both").click()
        expect(page.locator("#answers")).to_contain_text("as what is where ?")
        page.locator("#pictures img").nth(2).click()
        expect(page.locator("#asked img")).to_have_attribute("alt", "the picture that is asked about: drawn 3")
        assert fits(page)
        open_tab(page, "Arena")
        expect(page.locator("#arena-asked img")).to_be_visible()
        expect(page.locator("#arena-left .answer")).to_contain_text("star")
        expect(page.locator("#arena-mode")).to_have_count(0)
        assert "base" not in page.locator("#arena").inner_text()
        before = store.counts()["votes"]
        page.get_by_text("Say why").click()
        page.locator("#tags").get_by_text("count").click()
        page.get_by_label("In your words").fill("one too many")
        page.locator("#battle-prompt").click()  # no longer typing: keys are shortcuts again
        page.locator("body").press("q")
        expect(page.locator("#left-ok input").first).to_be_checked()
        page.locator("body").press("ArrowLeft")
        expect(page.locator("#receipt")).to_contain_text("Vote kept")
        expect(page.locator("#reveal-left")).to_contain_text(list(store.votes())[-1].battle.left.model)
        ballot = list(store.votes())[-1].ballot
        assert (ballot.left_ok, ballot.tags, ballot.reasons) == (True, ("count",), "one too many")
        assert store.counts()["votes"] == before + 1
        page.locator("body").press("Enter")
        expect(page.locator("#vote-left")).to_be_visible()
        assert fits(page)
        _votes(answering, 8)
        open_tab(page, "Leaderboard")
        expect(page.locator("#board table").first).to_contain_text("aligned")
        page.locator("#board-style").get_by_text("Allowing for style").click()
        expect(page.locator("#board")).to_contain_text("length")
        assert fits(page)
        open_tab(page, "Dataset")
        expect(page.locator("#dataset-rows")).to_contain_text("there is a blue star")
        page.locator("#export").click()
        expect(page.locator("#exported")).to_contain_text("on held-out pictures")
        with page.expect_download() as download:
            page.locator("#export-download").click()
        download.value.save_as(tmp_path / "answers.parquet")
        assert {"chosen", "rejected", "images"} <= set(pq.read_table(tmp_path / "answers.parquet").column_names)
        assert fits(page)


def _votes(served: SimpleNamespace, number: int) -> None:
    """At least ``number`` votes, and as many on held-out pictures."""
    from app.arena import read_ballot

    arena = served.ctx.arena
    held = 0
    while held < number:
        token = arena.new_voter()
        shown = arena.next(token)
        arena.vote(token, shown.battle_id, read_ballot("left", None, None, [], "", 1.0))
        held += HoldOut().holds(list(arena.store.votes())[-1])
