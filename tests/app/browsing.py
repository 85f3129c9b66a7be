"""What the browser tests share: how Chromium is started, the two sizes, a visit, tabs, and screenshots."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--headless=new",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-color-profile=srgb",
]
SIZES: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "light"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True, "is_mobile": True},
}


@contextmanager
def visit(browser: Any, kind: str, url: str) -> Iterator[Any]:
    """A new visitor's page at ``url``; nothing is asked of other addresses, and no script of it fails."""
    context = browser.new_context(**SIZES[kind], accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    problems: list[str] = []
    opened.on(
        "request", lambda sent: None if sent.url.startswith((url, "data:", "blob:")) else problems.append(sent.url)
    )
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(url, wait_until="domcontentloaded")
    yield opened
    context.close()
    assert problems == []


def fits(page: Any) -> bool:
    """Whether nothing sticks out sideways."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")


def open_tab(page: Any, name: str) -> None:
    """Go to a tab, also where a narrow screen keeps it in the menu of further tabs."""
    tab = page.get_by_role("tab", name=name, exact=True)
    page.get_by_role("tab", name="Compare", exact=True).first.wait_for()
    if not tab.first.is_visible():
        page.locator(".overflow-menu button").first.click()
        page.locator(".overflow-dropdown").get_by_text(name, exact=True).click()
        return
    tab.first.click()


def screenshot(page: Any, file: Path) -> None:
    """A picture of the whole page at ``file``."""
    page.wait_for_timeout(600)
    file.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=file, full_page=True)
    with Image.open(file) as taken:
        taken.convert("RGB").save(file, optimize=True)
