"""How the app is started: safe unless told otherwise, and as a Space."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import gradio as gr
import pytest

from app import app as entry
from app import page, serve

ROOT = Path(__file__).parents[2]


def options(*arguments: str) -> dict:
    return serve.launch_options(serve.parser().parse_args(list(arguments)))


def test_safe_by_default(tmp_path: Path) -> None:
    launch = options("--store", str(tmp_path / "votes"))
    assert launch["server_name"] == "127.0.0.1"
    assert launch["share"] is False
    assert launch["allowed_paths"] == []
    assert launch["strict_cors"] is True
    assert launch["max_file_size"] <= 1024 * 1024
    assert launch["blocked_paths"] == [str(tmp_path / "votes")]
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_strangers_need_a_login(tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "votes"))
    for opened in (["--share"], ["--host", "0.0.0.0"], ["--host", "192.168.1.4"], ["--share", "--public"]):
        with pytest.raises(ValueError, match="needs --auth FILE"):
            options(*opened, *store)
    users = tmp_path / "users.txt"
    users.write_text("eva:correct horse\n\nbob:battery:staple\n")
    assert options("--share", "--auth", str(users), *store)["auth"] == [
        ("eva", "correct horse"),
        ("bob", "battery:staple"),
    ]
    for wrong in ("eva", "eva:short", ":correct horse", ""):
        users.write_text(wrong)
        with pytest.raises(ValueError, match=r"line 1: needs USER:PASSWORD|is empty") as caught:
            options("--auth", str(users), *store)
        assert "short" not in str(caught.value).split("needs")[0]


def test_options_that_exclude_each_other_and_a_store_in_the_cache(tmp_path: Path) -> None:
    for arguments in (
        ["--base", "a", "--gallery", "b", "c"],
        ["--aligned", "x"],
        ["--gallery", "a", "b", "--device", "cpu"],
    ):
        with pytest.raises(ValueError, match=r"exclude each other|needs --base|has no effect"):
            serve.source_of(serve.parser().parse_args(arguments))
    with pytest.raises(ValueError, match="visitors can read"):
        serve.store_folder(Path(os.environ["GRADIO_TEMP_DIR"]) / "votes")


def test_a_file_of_models_is_what_is_served() -> None:
    file = str(ROOT / "app" / "models.example.yaml")
    source = serve.source_of(serve.parser().parse_args(["--models", file]))
    assert source.names == ["tiny-sdxl", "tiny-sdxl with guidance"]
    with pytest.raises(ValueError, match="no such file"):
        serve.source_of(serve.parser().parse_args(["--models", "none.yaml"]))


def test_a_component_that_takes_files_is_refused() -> None:
    for component in (gr.Image, gr.File, gr.Gallery, gr.UploadButton):
        with gr.Blocks() as blocks:
            component(elem_id="given")
        with pytest.raises(ValueError, match="'given' must have interactive=False"):
            page.refuse_files(blocks)


def test_an_old_gradio_is_refused() -> None:
    serve.check_gradio("6.20.0")
    for version in ("5.49.1", "6.19.9"):
        with pytest.raises(RuntimeError, match="security holes"):
            serve.check_gradio(version)


def test_requirements_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"], *project["optional-dependencies"]["app"]}
    lines = (ROOT / "app" / "requirements.txt").read_text().splitlines()
    assert {line for line in lines if line and not line.startswith("#")} == wanted


def test_a_space_is_public_behind_its_proxy_and_keeps_votes_on_its_disk(tmp_path: Path) -> None:
    assert entry.space_options(False, tmp_path) == []
    given = serve.parser().parse_args(entry.space_options(True, tmp_path))
    assert given.public
    assert given.behind_proxy
    assert given.store == tmp_path / "arena"
    front = (ROOT / "app" / "README.md").read_text().split("---")[1]
    assert "sdk: gradio" in front
    assert "app_file: app.py" in front


def test_the_folder_is_the_package_app_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "a-space").symlink_to(ROOT / "app", target_is_directory=True)
    code = "import app as entry; entry.as_package(); import app.limits; print(app.limits.MOST_VISITORS)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "a-space", capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "20000", done.stderr
