"""What the browser tests share: how Chromium is started, the two sizes, tabs, and screenshots."""

from pathlib import Path
from typing import Any

from PIL import Image

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
