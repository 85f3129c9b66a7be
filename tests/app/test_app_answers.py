"""Vision-language models in the app: two answers to one question, from served pictures only."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import free_port
from gradio_client import Client
from PIL import Image
from safetensors.torch import load_file, save_file

from app import serve
from app.answers import Answering, Answers, marked
from app.answers_page import answers_of
from mmalign.models.names import PLAYGROUND

BASE = "playground/tiny-llava"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-llava with its last layer disturbed, where a run would leave it."""
    folder = tmp_path_factory.mktemp("vlm") / "run" / "aligned"
    shutil.copytree(PLAYGROUND / "tiny-llava", folder)
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name in sorted(weights) if "layers.2.mlp.down_proj" in name and "vision" not in name)
    noise = torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(0))
    weights[name] = weights[name] + 0.5 * noise.to(weights[name].dtype)
    save_file(weights, file, {"format": "pt"})
    return folder.parent


@pytest.fixture(scope="module")
def address(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = str(tmp_path_factory.mktemp("store"))
    given = ["--base", BASE, "--aligned", str(run), "--port", str(free_port()), "--store", store, "--device", "cpu"]
    options = serve.parser().parse_args(given)
    launch = {**serve.launch_options(options), "prevent_thread_lock": True, "quiet": True}
    app, url, _ = serve.start(serve.page_of(options), launch)
    yield url
    app.get_blocks().close(verbose=False)


def test_both_models_answer_and_the_base_is_the_base(run: Path) -> None:
    from mmalign.evaluation.vlm_answers import greedy_answers
    from mmalign.models.vlm import load_vlm
    from mmalign.training.config import ModelConfig

    answering = Answering(BASE, run, None, "cpu")
    question = answering.questions()[0]
    said = answering.ask("drawn 1", question)
    own = load_vlm(ModelConfig(name=BASE))
    picture = answering.pictures["drawn 1"]
    assert said.base == greedy_answers(own.model, own.processor, [picture], [question], max_new_tokens=128)[0]
    assert said.base != said.aligned
    assert answering.ask("drawn 1", question) is said
    with pytest.raises(ValueError, match="picture '/etc/passwd' is unknown") as caught:
        answering.ask("/etc/passwd", "")
    assert "question is empty" in str(caught.value)


def test_models_and_pictures_that_are_not_there(run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for aligned, folder, words in (
        (None, None, "give --aligned"),
        (tmp_path, None, "no folder with a config.json"),
        (run, tmp_path / "none", "is not a folder"),
        (run, run, r"has no \.png"),
        (run, tmp_path, "cannot be shown"),
    ):
        with pytest.raises(ValueError, match=words):
            Answering(BASE, aligned, folder)
    with pytest.raises(ValueError, match="give --pictures DIR"):
        Answering(str(run / "aligned"), run, None)
    with pytest.raises(ValueError, match="--pictures would be ignored"):
        serve.page_of(serve.parser().parse_args(["--base", "playground/tiny-sdxl", "--pictures", str(tmp_path)]))
    Image.new("RGB", (64, 64)).save(tmp_path / "broken.png")
    assert list(Answering(BASE, run, tmp_path).pictures) == ["broken.png"]


def test_answers_are_text_and_what_differs_is_marked() -> None:
    assert marked("a red star", "a blue star") == "a <mark>red</mark> star"
    evil = "<script>alert(1)</script>"
    page = answers_of(Answers("p", evil, evil, f"{evil} <b>"), evil)
    assert "<script" not in page
    assert "<b>" not in page
    assert "Both say the same" in answers_of(Answers("p", "q", "x", "x"), "run")


def test_the_served_page_answers_and_refuses(address: str) -> None:
    client = Client(address, verbose=False, httpx_kwargs={"timeout": 120})
    html = client.predict("drawn 2", "how many things are there ?", api_name="/ask")
    assert html.count('class="answer"') == 2
    for picture, question in (("../secret.png", "what ?"), ("drawn 1", "x" * 2000)):
        with pytest.raises(Exception, match=r"unknown|at most 1000"):
            client.predict(picture, question, api_name="/ask")
