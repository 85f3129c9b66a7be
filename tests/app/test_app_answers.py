"""Vision-language models in the app: two answers to one question, compared, voted on blind, and trained on."""

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import free_port
from gradio_client import Client
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from app import arena_tab, board_tab, dataset, dataset_tab, serve
from app.answers import Answers, AnswerSource, marked
from app.answers_tab import answers_of
from app.arena import read_ballot, read_ranking
from app.board import findings
from app.compare import archive
from app.context import Context
from app.settings import checked, given_settings
from mmalign.arena import HoldOut
from mmalign.arena.export import export_votes
from mmalign.cli.__main__ import app as cli
from mmalign.models.names import PLAYGROUND
from mmalign.training.config import DataConfig
from mmalign.vlm_data import open_source

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
    weights[name] = weights[name] + 2 * noise.to(weights[name].dtype)
    save_file(weights, file, {"format": "pt"})
    return folder.parent


@pytest.fixture(scope="module")
def ctx(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """The app on tiny-llava and that run, as the command line makes it."""
    store = str(tmp_path_factory.mktemp("store"))
    given = ["--base", BASE, "--aligned", str(run), "--port", str(free_port()), "--store", store, "--device", "cpu"]
    options = serve.parser().parse_args(given)
    made = serve.context(options)
    made.arena.ahead = 0
    yield made
    made.arena.close()
    made.arena.store.close()


@pytest.fixture(scope="module")
def address(ctx: Context) -> Iterator[str]:
    options = serve.parser().parse_args(["--port", str(free_port()), "--store", str(ctx.arena.store.path.parent)])
    app, url, _ = serve.serve(ctx, {**serve.launch_options(options), "prevent_thread_lock": True, "quiet": True})
    yield url
    app.get_blocks().close(verbose=False)


def test_both_models_answer_and_the_base_is_the_base(ctx: Context) -> None:
    from mmalign.evaluation.vlm_answers import greedy_answers
    from mmalign.models.vlm import load_vlm
    from mmalign.training.config import ModelConfig

    source = ctx.source
    assert isinstance(source, AnswerSource)
    question = source.prompts()[0]
    said = source.ask("base", "aligned", "drawn 1", question)
    own = load_vlm(ModelConfig(name=BASE))
    picture = source.pictures["drawn 1"]
    assert said.said_left == greedy_answers(own.model, own.processor, [picture], [question], max_new_tokens=128)[0]
    assert said.said_left != said.said_right
    with pytest.raises(ValueError, match="picture '/etc/passwd' is unknown") as caught:
        source.ask("base", "../run", "/etc/passwd", "")
    assert "question is empty" in str(caught.value)
    assert "right model" in str(caught.value)


def test_models_and_pictures_that_are_not_there(run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="give --aligned"):
        given_settings(BASE, None)
    with pytest.raises(ValueError, match=r"no folder with a config\.json"):
        given_settings(BASE, tmp_path)
    settings = given_settings(BASE, run)
    for folder, words in (
        (tmp_path / "none", "is not a folder"),
        (run, r"has no \.png"),
        (tmp_path, "cannot be shown"),
    ):
        with pytest.raises(ValueError, match=words):
            AnswerSource(settings, folder)
    with pytest.raises(ValueError, match="give --pictures DIR"):
        AnswerSource(given_settings(str(run / "aligned"), run), None)
    for arguments, words in (
        (["--base", BASE, "--aligned", str(run), "--reward", "oracle"], "--reward would be ignored"),
        (["--pictures", str(tmp_path)], "--pictures would be ignored"),
    ):
        with pytest.raises(ValueError, match=words):
            serve.source_of(serve.parser().parse_args(arguments))
    Image.new("RGB", (64, 64)).save(tmp_path / "broken.png")
    assert list(AnswerSource(settings, tmp_path).pictures) == ["broken.png"]


def test_a_models_file_is_of_one_family_and_says_nothing_that_is_ignored(run: Path) -> None:
    entries = [{"name": "one", "base": BASE}, {"name": "two", "base": BASE, "aligned": str(run)}]
    three = checked({"models": [*entries, {"name": "three", "base": str(run / "aligned")}], "prompts": ["what ?"]}, "f")
    source = AnswerSource(three, None, "cpu")
    assert source.names == ["one", "two", "three"]
    assert source.prompts() == ["what ?"]
    one, two, again = (source.weights(name) for name in source.names)
    assert two["adapter_hash"] == again["model_hash"] != one["model_hash"] == two["model_hash"]
    with pytest.raises(ValueError, match="nothing to be compared by"):
        checked({"models": [entries[0], {"name": "sd", "base": "playground/tiny-sdxl"}]}, "f")
    fixed = {**entries[0], "guidance": 2.0, "steps": 4, "lora_scale": 0.5}
    with pytest.raises(ValueError, match="f has 4 mistakes") as caught:
        checked({"models": [fixed, entries[1]], "guidance": 1.0}, "f")
    assert str(caught.value).count("would be ignored") == 4


def test_answers_are_text_and_what_differs_is_marked() -> None:
    assert marked("a red star", "a blue star") == "a <mark>red</mark> star"
    evil = "<script>alert(1)</script>"
    page = answers_of(Answers("p", evil, evil, evil, evil, f"{evil} <b>"))
    assert "<script" not in page
    assert "<b>" not in page
    assert "Both say the same" in answers_of(Answers("p", "q", "base", "run", "x", "x"))
    assert "says nothing" in answers_of(Answers("p", "q", "base", "run", "", "x"))


def test_answers_meet_blind_and_are_revealed_with_all_that_made_them(ctx: Context) -> None:
    token = ctx.arena.new_voter()
    shown = ctx.arena.next(token)
    assert len(shown.images) == 1
    assert len(set(shown.answers)) == 2
    seen = repr({name: value for name, value in arena_tab.before(shown).items() if name != "asked"})
    for word in ("base", "aligned", "drawn", str(ctx.arena.folder)):
        assert word not in seen
    with pytest.raises(ValueError, match="form 'ranking' is unknown"):
        ctx.arena.next(token, "ranking")
    with pytest.raises(ValueError, match="asks for better"):
        ctx.arena.vote(token, shown.battle_id, read_ranking([0, 1, 2, 3], [], "", 1.0))
    revealed = ctx.arena.vote(token, shown.battle_id, read_ballot("left", "yes", "no", ["count"], "", 1.0))
    assert [side.answer for side in revealed.sides] == list(shown.answers)
    assert {side.model for side in revealed.sides} == {"base", "aligned"}
    for side in revealed.sides:
        assert side.prompt == shown.prompt
        assert len(side.model_hash or "") == 64
        assert side.dtype == "float32"
        assert side.extras["decoding"] == "greedy"
        assert (side.adapter == "run") == (side.model == "aligned") == (side.adapter_hash is not None)
    updates = arena_tab.after(ctx, revealed)
    with zipfile.ZipFile(updates["download"]["value"]) as zipped:
        rows = [json.loads(line) for line in zipped.read("manifest.jsonl").decode().splitlines()]
    assert [row["answer"] for row in rows] == list(shown.answers)
    assert archive([[picture] for picture in revealed.pictures])


def test_votes_on_answers_are_counted_exported_and_trained_on(ctx: Context, tmp_path: Path) -> None:
    before = ctx.arena.store.counts()["votes"]
    for _ in range(12):
        token = ctx.arena.new_voter()
        shown = ctx.arena.next(token)
        left = ctx.arena.store.battle(shown.battle_id).left
        better = "left" if left.model == "aligned" else "right"
        ctx.arena.vote(token, shown.battle_id, read_ballot(better, None, None, [], "", 1.0))
    page = board_tab.page_of(ctx)
    assert f"{before + 12}</strong>" in page
    assert "aligned<small>#" in page
    (effect,) = findings(ctx, style=True).board.style
    assert effect.name == "length"
    listed = dataset_tab.rows_of(dataset.votes_of(ctx, "", "aligned", "decided"))
    assert listed.count('class="said"') >= 12
    assert dataset.contact_sheet(list(ctx.arena.store.votes())) is None
    with pytest.raises(ValueError, match="form 'canonical' is unknown"):
        dataset.export(ctx, "canonical")
    file = tmp_path / "answers.parquet"
    done = export_votes(ctx.arena.store, file, form="answers", hold_out=HoldOut(0))
    assert done.rows >= 12
    row = next(iter(open_source(DataConfig(source="auto", path=str(file)))))
    assert {row.extras["chosen"]["model"], row.extras["rejected"]["model"]} == {"base", "aligned"}
    small = ["training.steps=1", "training.batch_size=2", "training.warmup_steps=0", "training.checkpoint_every=1"]
    small += ["evaluation.every=1", f"data.path={file}", f"output={tmp_path / 'trained'}"]
    told = CliRunner().invoke(cli, ["train", "playground/vlm_dpo", *small])
    assert told.exit_code == 0, told.output
    again = AnswerSource(given_settings(BASE, tmp_path / "trained"), None, "cpu")
    assert again.ask("base", "aligned", "drawn 1", again.prompts()[0]).said_left


def test_the_served_page_answers_and_refuses(address: str, ctx: Context) -> None:
    client = Client(address, verbose=False, httpx_kwargs={"timeout": 120})
    said = client.predict("base", "aligned", "drawn 2", "how many things are there ?", api_name="/ask")
    assert set(said) == {"left", "right"}
    for picture, question in (("../secret.png", "what ?"), ("drawn 1", "x" * 2000)):
        with pytest.raises(Exception, match=r"unknown|at most 1000"):
            client.predict("base", "aligned", picture, question, api_name="/ask")
    voter = client.predict(api_name="/voter")
    battle = client.predict(voter, "pair", api_name="/battle")
    assert len(battle["images"]) == 1
    assert len(battle["answers"]) == 2
    before = ctx.arena.store.counts()["votes"]
    receipt = client.predict(voter, battle["id"], "right", "", "yes", [], "", api_name="/vote")
    assert {side["model"] for side in receipt["sides"]} == {"base", "aligned"}
    assert ctx.arena.store.counts()["votes"] == before + 1
