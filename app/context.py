"""What all tabs share: the source of pictures, the scorers, the arena, and the limits of a visitor."""

import html
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from app.answers import AnswerSource
from app.arena import Arena
from app.compare import Kept
from app.limits import Jobs, RateLimit, visitor_of
from app.scoring import Scorers
from app.sources import Source

GENERATIONS_PER_MINUTE = 30
VOTES_PER_MINUTE = 240
READS_PER_MINUTE = 240
QUEUE = 64


@dataclass(frozen=True)
class Context:
    """One running app. Limits count per visitor: who is logged in, or else the address."""

    source: Source | AnswerSource
    scorers: Scorers
    arena: Arena
    behind_proxy: bool = False
    may_export: bool = True
    styles: dict[str, dict[str, float]] = field(default_factory=dict)  # picture's digest -> how it looks
    kept: Kept = field(default_factory=Kept)
    jobs: Jobs = field(default_factory=Jobs)
    generations: RateLimit = field(default_factory=lambda: RateLimit(GENERATIONS_PER_MINUTE, "generations"))
    votes: RateLimit = field(default_factory=lambda: RateLimit(VOTES_PER_MINUTE, "votes and battles"))
    reads: RateLimit = field(default_factory=lambda: RateLimit(READS_PER_MINUTE, "look-ups"))

    def count(self, limit: RateLimit, request: Any) -> None:
        """One call of the visitor behind ``request``."""
        limit.take(visitor_of(request, behind_proxy=self.behind_proxy))


@contextmanager
def explained() -> Iterator[None]:
    """Shows a ``ValueError`` to the visitor as a message, as text; other errors stay in the server's log."""
    try:
        yield
    except ValueError as error:
        words = html.escape(str(error)[:2000]).replace("\n", "<br>")
        raise gr.Error(words, title="That did not work", print_exception=False) from error


def new_file(name: str) -> Path:
    """A path in a new folder of Gradio's own cache, from where it is served and, in time, deleted."""
    folder = Path(get_upload_folder()) / secrets.token_hex(16)
    folder.mkdir(parents=True)
    return folder / name


def session_of(request: Any) -> str:
    """The page that asks; each load of the page is one."""
    return str(getattr(request, "session_hash", None) or "no-session")
