"""The real processor of every family, from pictures and conversations to scores: what it makes is what the model takes.

One picture, a wide one, several, none, and a video where the family has videos; packed against plain forwards.
"""

from typing import Any

import pytest
import torch
import transformers.models.smolvlm.processing_smolvlm as smolvlm
from PIL import Image

from mmalign.adapters import Context, Response, VLMAdapter, VLMBatch
from mmalign.adapters.vlm_checks import check_response
from mmalign.data import decode
from mmalign.models.vlm import load_vlm
from mmalign.models.vlm_encode import Prompt, VLMEncoder
from mmalign.training.config import ModelConfig
from mmalign.types import Clip, ImagePart, Message, VideoPart
from tests.vlm.tiny_processors import save_tiny_vlm, tiny_processor
from tests.vlm.tiny_vlms import BOS, EOS, KINDS, tiny_vlm
from tests.vlm.vlm_batches import ADAPTER, plain_scores
from tests.vlm.vlm_rows import picture

EACH = pytest.mark.parametrize("kind", KINDS)
WITH_VIDEOS = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm")
PICTURES = [decode(picture(seed, size)) for seed, size in enumerate(((40, 32), (90, 40), (32, 40)))]
# Parts of the user's turn, and its pictures.
PROMPTS: dict[str, tuple[tuple[Any, ...], list[Image.Image]]] = {
    "one": ((ImagePart(0), "What is this?"), PICTURES[:1]),
    "wide": (("Look: ", ImagePart(0), "How wide?"), PICTURES[1:2]),
    "two": ((ImagePart(0), "and", ImagePart(1), "The same?"), PICTURES[1:]),
    "words": (("Just words?",), []),
}


@pytest.fixture(autouse=True)
def _spelt_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolVLM spells the number of frames with a package that is not needed otherwise."""
    if smolvlm.num2words is None:
        monkeypatch.setattr(smolvlm, "num2words", str)


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[Any, VLMEncoder]]:
    return {}


def model_and_encoder(made: dict[str, tuple[Any, VLMEncoder]], kind: str) -> tuple[Any, VLMEncoder]:
    if kind not in made:
        made[kind] = tiny_vlm(kind), VLMEncoder(tiny_processor(kind), max_length=2048)
    return made[kind]


def context_of(model: Any, prompt: Prompt, name: str) -> Context:
    return ADAPTER.context(model, prompt.input_ids, prompt.media, mm_token_type_ids=prompt.mm_token_type_ids, name=name)


def batch_of(model: Any, encoder: VLMEncoder, prompts: list[Prompt], names: list[str]) -> VLMBatch:
    contexts = tuple(context_of(model, prompt, name) for prompt, name in zip(prompts, names, strict=True))
    responses = {
        side: tuple(
            Response(row, encoder.answer(prompt, text + "!" * row, names[row]).input_ids)
            for row, prompt in enumerate(prompts)
        )
        for side, text in (("chosen", "Yes, it is."), ("rejected", "No"))
    }
    batch = VLMBatch(contexts, responses, sample_ids=tuple(names))
    return batch.changed(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def agrees(model: Any, batch: VLMBatch) -> None:
    with torch.no_grad():
        scores = VLMAdapter("always", row_tokens=400).score(model, None, batch)
        for side in ("chosen", "rejected"):
            torch.testing.assert_close(scores[side].logp, plain_scores(model, batch, side), rtol=0, atol=1e-9)


@EACH
def test_pictures_and_words_in_one_batch(made: dict[str, Any], kind: str) -> None:
    model, encoder = model_and_encoder(made, kind)
    prompts = [encoder.prompt((Message("user", parts),), pictures, name) for name, (parts, pictures) in PROMPTS.items()]
    batch = batch_of(model, encoder, prompts, list(PROMPTS))
    images = [context.placeholders.get("image", 0) for context in batch.contexts]
    assert images[-1] == 0
    assert min(images[:-1]) > 0
    assert batch.contexts[-1].media == {}
    for prompt in prompts:
        assert prompt.input_ids.tolist().count(BOS) == 1
        assert prompt.input_ids[0] == BOS
    for responses in batch.responses.values():
        assert all(one.input_ids.tolist().count(EOS) == 1 and one.input_ids[-1] == EOS for one in responses)
    agrees(model, batch)


@EACH
def test_videos_where_the_family_has_them(made: dict[str, Any], kind: str) -> None:
    model, encoder = model_and_encoder(made, kind)
    frames = tuple(Image.new("RGB", (40, 32), (60 * number, 100, 50)) for number in range(4))
    message, clips = Message("user", (VideoPart(0), "What happens?")), (Clip(frames, 2.0),)
    if kind not in WITH_VIDEOS:
        with pytest.raises(ValueError, match=r"a: the row has a video, and \w+Processor takes none"):
            encoder.prompt((message,), (), "a", clips)
        return
    agrees(model, batch_of(model, encoder, [encoder.prompt((message,), (), "a", clips)], ["a"]))


@EACH
def test_what_would_go_wrong_in_silence(made: dict[str, Any], kind: str) -> None:
    """A prompt that is cut, a prompt that is too long, an empty response, a mark in a text, types that are lost."""
    model, encoder = model_and_encoder(made, kind)
    parts, pictures = PROMPTS["one"]
    prompt = encoder.prompt((Message("user", parts),), pictures, "a")
    context = context_of(model, prompt, "a")
    with pytest.raises(ValueError, match="a: the response is empty"):
        encoder.answer(prompt, " \n", "a")
    short = VLMEncoder(encoder.processor, max_length=len(prompt.input_ids))
    with pytest.raises(
        ValueError, match=r"leaves no room for a response in vlm.max_length=\d+; tokens of pictures are"
    ):
        short.answer(prompt, "Yes.", "a")
    token = model.config.image_token_id
    with pytest.raises(ValueError, match=f"a: the response holds the token {token}, which stands for an image"):
        check_response(model, [11, token], "a")
    if "qwen" in kind:
        with pytest.raises(ValueError, match=r"a: .*mm_token_type_ids"):
            ADAPTER.context(model, prompt.input_ids, prompt.media, name="a")
        with pytest.raises(ValueError, match="image_grid_thw is missing"):
            ADAPTER.context(model, prompt.input_ids, {"pixel_values": prompt.media["pixel_values"]}, name="a")
        return
    # One token of the picture is lost on the way, as a tokenizer that truncates would lose it.
    first = int((prompt.input_ids == token).nonzero()[0])
    kept = torch.arange(len(prompt.input_ids)) != first
    cut = ADAPTER.context(model, prompt.input_ids[kept], context.media, name="a")
    one = (Response(0, torch.tensor([11, EOS])),)
    batch = VLMBatch((cut,), {"chosen": one, "rejected": one}, sample_ids=("a",))
    count = context.placeholders["image"]
    with pytest.raises(ValueError, match=f"a: {count - 1} image tokens in the prompt, but its images have {count}"):
        ADAPTER.score(model, None, batch.changed(lambda t: t.double() if t.is_floating_point() else t))


def test_a_template_that_begins_twice() -> None:
    processor = tiny_processor("llava")
    processor.chat_template = "{{ bos_token }}" + processor.chat_template
    with pytest.raises(ValueError, match=r"a: the prompt begins with two begin tokens \(<s>\)"):
        VLMEncoder(processor, max_length=99).prompt((Message("user", ("Hello?",)),), (), "a")


def test_a_processor_that_needs_another_package(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_vlm(tmp_path / "model", "smolvlm")
    monkeypatch.setattr(smolvlm, "num2words", None)
    with pytest.raises(ValueError, match=r"its processor needs another package: .*num2words"):
        load_vlm(ModelConfig(name=str(tmp_path / "model")))
