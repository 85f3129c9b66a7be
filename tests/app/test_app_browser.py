"""A person at the page, with a real browser: every tab, the keyboard, a phone; and nothing from outside."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from browsing import ARGUMENTS, SIZES, open_tab, screenshot

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium on this machine (apt-get install chromium, or CHROMIUM=PATH)", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright.expect.set_options(timeout=60_000)
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(params=sorted(SIZES))
def page(request: pytest.FixtureRequest, browser: Any, served: SimpleNamespace) -> Iterator[Any]:
    context = browser.new_context(**SIZES[request.param], accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    problems: list[str] = []
    opened.on("request", lambda sent: problems.append(sent.url) if _outside(sent.url, served.url) else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(served.url, wait_until="domcontentloaded")
    opened.kind = request.param
    yield opened
    context.close()
    assert problems == []


def _outside(url: str, own: str) -> bool:
    return not url.startswith((own, "data:", "blob:"))


def fits(page: Any) -> bool:
    """Whether nothing sticks out sideways."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")


def test_a_visit_from_comparison_to_export(page: Any, served: SimpleNamespace, tmp_path: Path) -> None:
    expect = playwright.expect
    # Compare: pictures are there at once, with scores; every view works.
    expect(page.locator("#picture-left img")).to_be_visible()
    expect(page.locator("#caption-right")).to_contain_text("oracle")
    assert "aligned: " in (page.locator("#picture-right img").get_attribute("alt") or "")
    page.locator("#view").get_by_text("Difference").click()
    expect(page.locator("#difference img")).to_be_visible()
    page.locator("#view").get_by_text("Flicker").click()
    expect(page.locator("#flicker figure img").first).to_be_visible()
    page.locator("#view").get_by_text("Slider").click()
    expect(page.locator("#slider img").first).to_be_visible()
    page.locator("#view").get_by_text("Side by side").click()
    expect(page.locator("#picture-left img")).to_be_visible()
    page.get_by_label("number input for Seeds in a row").fill("3")
    page.locator("#generate").click()
    expect(page.locator("#seed-grid img")).to_have_count(6)
    expect(page.locator("#compare-summary")).to_contain_text("of 3 seeds")
    assert fits(page)
    screenshot(page, "compare")

    # Arena: blind, one key to vote, the reveal, one key for the next.
    before = served.ctx.arena.store.counts()["votes"]
    open_tab(page, "Arena")
    expect(page.locator("#arena-left img")).to_be_visible()
    expect(page.locator("#reveal-left")).not_to_contain_text("base")
    first = page.locator("#battle-prompt").inner_text()
    page.locator("body").press("o")
    expect(page.locator("#right-ok input").first).to_be_checked()
    page.locator("body").press("ArrowRight")
    expect(page.locator("#receipt")).to_contain_text("Vote kept")
    names = page.locator("#reveal-left").inner_text() + page.locator("#reveal-right").inner_text()
    assert "base" in names
    assert "aligned" in names
    assert served.ctx.arena.store.counts()["votes"] == before + 1
    assert list(served.ctx.arena.store.votes())[-1].ballot.right_ok is True
    screenshot(page, "arena")
    page.locator("body").press("Enter")
    expect(page.locator("#receipt")).not_to_contain_text("Vote kept")
    expect(page.locator("#vote-left")).to_be_visible()
    assert page.locator("#battle-prompt").inner_text() or first
    page.locator("body").press("ArrowLeft")
    expect(page.locator("#receipt")).to_contain_text("Vote kept")
    assert fits(page)

    # Four in order, by keyboard.
    page.locator("#arena-mode").get_by_text("Order four").click()
    expect(page.locator("#arena-3 img")).to_be_visible()
    for key in "3142":
        page.locator("body").press(key)
        expect(page.locator(f"#pick-{int(key) - 1}")).to_be_disabled()
    page.locator("#submit-order").click()
    expect(page.locator("#receipt")).to_contain_text("Vote kept")
    assert list(served.ctx.arena.store.votes())[-1].ballot.ranking == (2, 0, 3, 1)
    assert fits(page)

    # Leaderboard: the votes count.
    open_tab(page, "Leaderboard")
    expect(page.locator("#board table").first).to_contain_text("aligned")
    shown = page.locator("#board .tile strong").first.inner_text()
    assert int(shown) >= 3
    assert fits(page)
    screenshot(page, "leaderboard")

    # Dataset: what was voted, and the file to train on.
    open_tab(page, "Dataset")
    expect(page.locator("#dataset-rows table")).to_contain_text("›")
    for _ in range(12):  # so that some prompt is not held out
        _vote(served)
    page.locator("#export").click()
    expect(page.locator("#exported")).to_contain_text("rows from")
    expect(page.locator("#export-download")).to_be_visible()
    with page.expect_download() as download:
        page.locator("#export-download").click()
    download.value.save_as(tmp_path / "votes.parquet")
    assert len(pq.read_table(tmp_path / "votes.parquet")) > 0
    assert fits(page)
    screenshot(page, "dataset")


def test_a_reload_is_the_same_voter(page: Any, served: SimpleNamespace) -> None:
    for _ in range(2):
        open_tab(page, "Arena")
        playwright.expect(page.locator("#arena-left img")).to_be_visible()
        page.locator("body").press("ArrowDown")
        playwright.expect(page.locator("#receipt")).to_contain_text("tie")
        page.reload(wait_until="domcontentloaded")
    last, again = list(served.ctx.arena.store.votes())[-2:]
    assert last.voter == again.voter
    assert last.battle.id != again.battle.id


def _vote(served: SimpleNamespace) -> None:
    from app.arena import read_ballot

    arena = served.ctx.arena
    token = arena.new_voter()
    shown = arena.next(token)
    arena.vote(token, shown.battle_id, read_ballot("left", "yes", "no", [], "", 1.0))
