"""``python -m app``: what is compared, where votes are kept, and a launch that is safe unless told otherwise."""

import argparse
import atexit
import ipaddress
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Both are read while Gradio is imported. Nobody is told that the app was started.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("GRADIO_TEMP_DIR", tempfile.mkdtemp(prefix="mmalign-app-"))

import gradio as gr
from starlette.middleware import Middleware

from app import page, theme
from app.answers import AnswerSource
from app.arena import Arena
from app.context import QUEUE, Context
from app.gallery import GallerySource
from app.guard import Guard
from app.live import LiveSource
from app.scoring import Scorers
from app.settings import Settings, default_settings, given_settings, is_vlm, read_settings
from app.sources import Request, Source
from mmalign.arena import VoteStore

OLDEST_GRADIO = (6, 20)  # security fixes are not backported
LARGEST_FILE = 1024 * 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, build, serve until interrupted. Mistakes end it with status 2 and a sentence."""
    check_gradio(gr.__version__)
    options = parser().parse_args(arguments)
    try:
        launch = launch_options(options)
        ctx = context(options)
    except ValueError as error:
        sys.exit(f"error: {error}")
    atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
    ctx.source.warm()
    serve(ctx, launch)


def serve(ctx: Context, launch: dict[str, Any]) -> tuple[Any, str, str]:
    """Build and launch; gives Gradio's (app, address, shared address). ``ValueError`` where it would take files."""
    blocks = page.build(ctx)
    page.refuse_files(blocks)
    blocks.queue(max_size=QUEUE, api_open=False, default_concurrency_limit=8)
    return blocks.launch(theme=theme.theme(), css=theme.css(), head=theme.head(), **launch)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser("python -m app", description=__doc__)
    what = made.add_argument_group("what is compared (default: the embedded models)")
    what.add_argument("--base", help="base model: a folder, a hub id, or playground/tiny-sdxl")
    what.add_argument("--aligned", type=Path, metavar="RUN_DIR", help="output folder of a run, or a LoRA's file")
    what.add_argument("--models", type=Path, metavar="FILE", help="several models; see app/models.example.yaml")
    what.add_argument("--gallery", type=Path, nargs="+", metavar="DIR", help="folders of mmalign generate, no model")
    what.add_argument("--pictures", type=Path, metavar="DIR", help="what vision-language models are asked about")
    what.add_argument("--reward", action="append", help="reward models offered (repeatable); default: all installed")
    what.add_argument("--device", help="such as cpu or cuda:1; default: CUDA where there is one")
    made.add_argument("--store", type=Path, help="folder for votes and their pictures; default: your data folder")
    made.add_argument("--catch-rate", type=float, default=0.05, help="share of pairs that a voter sees twice (0.05)")
    how = made.add_argument_group("who may come")
    how.add_argument("--host", default="127.0.0.1", help="another address than this machine's own needs --auth")
    how.add_argument("--port", type=int, default=7860)
    how.add_argument("--auth", type=Path, metavar="FILE", help="a line USER:PASSWORD for each who may log in")
    how.add_argument("--share", action="store_true", help="a public tunnel through Gradio's servers; needs --auth")
    how.add_argument("--public", action="store_true", help="no login on another --host: for a host made for it")
    how.add_argument("--behind-proxy", action="store_true", help="count visitors by the proxy's X-Forwarded-For")
    return made


def context(options: argparse.Namespace) -> Context:
    """Models looked up, rewards found, the store opened; ``ValueError`` before any weight is loaded."""
    source = source_of(options)
    folder = store_folder(options.store)
    store = VoteStore(folder / "votes.db")
    sampled = None
    if isinstance(source, LiveSource):
        sampled = Request("", (0,), "", source.settings.steps, source.settings.guidance)
    arena = Arena(source, store, folder / "pictures", sampled=sampled, catch_rate=options.catch_rate)
    # An export marks votes; where anybody may come, that is for whoever has the store.
    may_export = not options.public
    rewards = [] if isinstance(source, AnswerSource) else options.reward
    return Context(source, Scorers(rewards), arena, behind_proxy=options.behind_proxy, may_export=may_export)


def source_of(options: argparse.Namespace) -> Source | AnswerSource:
    """The one source that the options name."""
    ways = {"--base": options.base, "--models": options.models, "--gallery": options.gallery}
    given = [name for name, value in ways.items() if value]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other; give one of them")
    if options.aligned and not options.base:
        raise ValueError("--aligned needs --base: the model that it was made of")
    if options.gallery:
        if options.device:
            raise ValueError("--device has no effect on --gallery: no model is loaded")
        _refuse_pictures(options)
        return GallerySource(options.gallery)
    settings = _settings(options)
    if is_vlm(settings.models[0].base):
        if options.reward:
            raise ValueError("--reward would be ignored: rewards score pictures, and these models give answers")
        return AnswerSource(settings, options.pictures, options.device)
    _refuse_pictures(options)
    return LiveSource(settings, options.device)


def _refuse_pictures(options: argparse.Namespace) -> None:
    if options.pictures:
        raise ValueError("--pictures would be ignored: it goes with vision-language models")


def _settings(options: argparse.Namespace) -> Settings:
    if options.models:
        return read_settings(options.models)
    return given_settings(options.base, options.aligned) if options.base else default_settings()


def store_folder(given: Path | None) -> Path:
    """Where votes are kept: never below the cache, whose files are served to everybody."""
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    folder = (given or home / "mmalign" / "arena").expanduser().resolve()
    cache = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    if folder == cache or folder.is_relative_to(cache):
        raise ValueError(f"--store {folder} is inside of Gradio's cache {cache}, which visitors can read; name another")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def launch_options(options: argparse.Namespace) -> dict[str, Any]:
    """Everything for ``Blocks.launch``; ``ValueError`` where strangers would come in without a login."""
    auth = None if options.auth is None else read_auth(options.auth)
    if options.share and auth is None:
        raise ValueError("--share opens this machine to everybody who has the address; it needs --auth FILE")
    if not is_loopback(options.host) and auth is None and not options.public:
        raise ValueError(
            f"--host {options.host} can be reached by others; it needs --auth FILE (or --public, if meant)"
        )
    return {
        "server_name": options.host,
        "server_port": options.port,
        "share": options.share,
        "auth": auth,
        "allowed_paths": [],
        "blocked_paths": [str(store_folder(options.store))],
        "max_file_size": LARGEST_FILE,
        "strict_cors": True,
        "show_error": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "footer_links": [],
        "app_kwargs": {"middleware": [Middleware(Guard, behind_proxy=options.behind_proxy)]},
    }


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_auth(file: Path) -> list[tuple[str, str]]:
    """(user, password) of each line; ``ValueError`` with the line's number, and never with a password in it."""
    if not file.is_file():
        raise ValueError(f"--auth {file}: no such file; give one with a line USER:PASSWORD for each")
    pairs = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        user, colon, password = line.strip().partition(":")
        if not colon or not user or len(password) < 8:
            raise ValueError(
                f"--auth {file}, line {number}: needs USER:PASSWORD with a password of 8 characters or more"
            )
        pairs.append((user, password))
    if not pairs:
        raise ValueError(f"--auth {file} is empty; give a line USER:PASSWORD for each who may log in")
    return pairs


def check_gradio(version: str) -> None:
    """``RuntimeError`` for a Gradio whose known security holes stay open."""
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_GRADIO:
        oldest = ".".join(map(str, OLDEST_GRADIO))
        raise RuntimeError(
            f"gradio {version} has known security holes; install gradio>={oldest}: pip install -U gradio"
        )
