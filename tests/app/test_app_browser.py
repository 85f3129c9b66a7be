"""A person at the page, with a real browser: every tab, the keyboard, a phone; and nothing from outside."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from browsing import SIZES, fits, open_tab, visit

from mmalign.arena import HoldOut

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")

# What is seen on the page and has no name for a screen reader.
NAMELESS = """() => [...document.querySelectorAll('img, button, input, textarea, select, [role=tab]')].filter(node => {
  if (!node.offsetParent || node.type === 'hidden' || node.closest('[aria-hidden=true]')) return false;
  if (node.tagName === 'IMG') return !node.hasAttribute('alt') || (!node.alt && !node.closest('button'));
  const by = node.getAttribute('aria-labelledby');
  const words = [node.getAttribute('aria-label'), by && document.getElementById(by)?.innerText, node.title,
    node.innerText, node.labels && [...node.labels].map(label => label.innerText).join(''),
    node.closest('label')?.innerText, [...node.querySelectorAll('img')].map(image => image.alt).join('')];
  return !words.some(text => text && text.trim());
}).map(node => node.outerHTML.slice(0, 160))"""
# Words of this app whose contrast with what lies behind them is below 4.5 (WCAG 2.2, 1.4.3).
PALE = r"""() => {
  const numbers = colour => colour.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = node => {
    for (let at = node; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const own = '.hero *, .notice, .caption *, .chip, .summary, .quiet, #generate, #stop, [role=tab], label span';
  return [...document.querySelectorAll(own)].filter(node => node.offsetParent && node.innerText.trim()).map(node => {
    const [a, b] = [luminance(numbers(getComputedStyle(node).color)), luminance(behind(node))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.className || node.id, node.innerText.slice(0, 30)];
  }).filter(([ratio]) => ratio < 4.5);
}"""


@pytest.fixture(params=sorted(SIZES))
def page(request: pytest.FixtureRequest, browser: Any, served: SimpleNamespace) -> Iterator[Any]:
    with visit(browser, request.param, served.url) as opened:
        yield opened


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
    page.get_by_label("number input for Seeds").fill("3")
    page.locator("#generate").click()
    expect(page.locator("#seed-grid img")).to_have_count(6)
    expect(page.locator("#compare-summary")).to_contain_text("of 3 seeds")
    assert fits(page)

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

    # Leaderboard: the votes count; after an export, those on held-out prompts.
    while len(votes := list(served.ctx.arena.store.votes())) < 24 or sum(map(HoldOut().holds, votes)) < 4:
        _vote(served)  # four covariates of style need votes to be told from the models
    open_tab(page, "Leaderboard")
    expect(page.locator("#board table").first).to_contain_text("aligned")
    expect(page.locator("#raters")).to_contain_text("alpha")
    shown = page.locator("#board .tile strong").first.inner_text()
    assert int(shown) >= 3
    assert fits(page)
    page.locator("#board-style").get_by_text("Allowing for style").click()
    expect(page.locator("#board #style")).to_be_visible()

    # Dataset: what was voted, and the file to train on.
    open_tab(page, "Dataset")
    expect(page.locator("#dataset-rows table")).to_contain_text("›")
    page.locator("#export").click()
    expect(page.locator("#exported")).to_contain_text("kept for the leaderboard")
    expect(page.locator("#export-download")).to_be_visible()
    with page.expect_download() as download:
        page.locator("#export-download").click()
    download.value.save_as(tmp_path / "votes.parquet")
    assert len(pq.read_table(tmp_path / "votes.parquet")) > 0
    assert fits(page)


def test_everything_has_a_name_and_is_reached_by_tab_alone(page: Any) -> None:
    """Pictures have words, controls have names, the keyboard reaches the button, and the scheme follows the system."""
    playwright.expect(page.locator("#picture-left img")).to_be_visible()
    nameless = page.evaluate(NAMELESS)
    assert nameless == []
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.closest('[id]')?.id"))
        if seen[-1] == "generate":
            break
    assert seen[-1] == "generate", seen
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#seed-grid img").first).to_be_visible()


def test_text_can_be_read_in_light_and_dark(page: Any, served: SimpleNamespace) -> None:
    playwright.expect(page.locator("#caption-right")).to_contain_text("oracle")
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    red = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (red < 60) if dark else (red > 220)
    del served
    pale = page.evaluate(PALE)
    assert pale == []


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
