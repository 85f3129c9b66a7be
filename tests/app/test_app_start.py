"""The app started as a person starts it, and as a Space does: it opens, and speaks to nobody else."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from conftest import free_port

ROOT = Path(__file__).parents[2]
# Notes every address that is looked up or connected to, but this machine's own.
WATCH = """
import os, socket
def watched(name, function, address_of):
    def call(*given, **more):
        host = str(address_of(*given, **more))
        if host not in ("127.0.0.1", "::1", "localhost", "None", "0.0.0.0") and not host.startswith("/"):
            with open(os.environ["WATCHED"], "a") as file:
                file.write(f"{name} {host}\\n")
        return function(*given, **more)
    return call
socket.getaddrinfo = watched("lookup", socket.getaddrinfo, lambda host, *rest, **more: host)
for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, watched(name, getattr(socket.socket, name),
        lambda self, address: address[0] if isinstance(address, tuple) else address))
"""


@contextmanager
def started(line: list[str], folder: Path, watched: Path, tmp_path: Path) -> Iterator[str]:
    """The address of the app that ``line`` starts in ``folder``, stopped at the end."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GRADIO", "HF_", "SPACE"))}
    environment |= {"PYTHONPATH": str(tmp_path / "watch"), "WATCHED": str(watched), "HOME": str(tmp_path)}
    port = free_port()
    line = [sys.executable, *line, "--port", str(port), "--store", str(tmp_path / "store")]
    running = subprocess.Popen(
        line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 600
    try:
        while True:
            assert running.poll() is None, running.communicate()[0]
            assert time.monotonic() < end, "the app never answered"
            try:
                httpx.get(url, timeout=60)
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield url
    finally:
        running.terminate()  # an interrupt is ignored where the tests run in the background of a shell
        running.communicate(timeout=60)


def test_the_watch_sees_what_leaves_this_machine(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    code = "import socket\ntry: socket.create_connection(('192.0.2.1', 9), timeout=0.01)\nexcept OSError: pass"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "WATCHED": str(tmp_path / "watched")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert "192.0.2.1" in (tmp_path / "watched").read_text()


@pytest.mark.parametrize("way", ["python -m app", "cd app && python app.py"])
def test_the_app_opens_and_speaks_to_nobody_else(way: str, gallery: list[Path], tmp_path: Path) -> None:
    plain = way == "python -m app"
    line = ["-m", "app"] if plain else ["app.py", "--gallery", *map(str, gallery)]
    watched = tmp_path / "watched"
    with started(line, ROOT if plain else ROOT / "app", watched, tmp_path) as url:
        config = httpx.get(f"{url}/config", timeout=60).text
        assert ("tiny-sdxl" if plain else "24 prompts with seeds") in config
        assert (tmp_path / "store" / "votes.db").is_file()
    assert not watched.exists(), watched.read_text()
