"""The shipped LLaVA: plain transformers load it, it sees, it makes things up by habit, and its recipe runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from mmalign.evaluation.vlm_playground import listen, measure, questions_of
from mmalign.models.vlm_names import peek_vlm
from mmalign.playground.looking import looks
from mmalign.playground.pretrain import LlavaSettings, pretrain
from mmalign.playground.pretrain.conversations import conversation_dataset
from mmalign.playground.pretrain.llava import answer_loss, to_pixels
from mmalign.playground.questions import DESCRIBE, words
from mmalign.playground.tiny_llava import BOS_ID, IMAGE_ID, USER_ID, build_processor, build_tiny_llava
from mmalign.playground.vlm_pairs import VLMPairSettings, own_pairs
from mmalign.training.config import ModelConfig

FOLDER = Path(peek_vlm(ModelConfig(name="playground/tiny-llava")).location)


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)
    return model, AutoProcessor.from_pretrained(FOLDER)


def test_the_shipped_folder_is_a_plain_llava_that_says_how_it_was_made(shipped: tuple[Any, Any]) -> None:
    model, processor = shipped
    assert isinstance(model, LlavaForConditionalGeneration)
    assert isinstance(processor, LlavaProcessor)
    assert processor.tokenizer.is_fast
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth")]
    record = json.loads((FOLDER / "pretrain.json").read_text())
    assert "--model tiny-llava" in record["command"]
    assert {"settings", "device", "seconds", "quality"} <= record.keys()
    assert "| hallucination_rate |" in (FOLDER / "README.md").read_text()


def test_it_is_right_where_habits_hold_and_makes_things_up_where_they_do_not(shipped: tuple[Any, Any]) -> None:
    usual, unusual = (
        measure(*shipped, looks(40, 7, follow=1, held_out=None)),
        measure(*shipped, looks(40, 7)),
    )
    assert usual["hallucination_rate"] < 0.1
    assert usual["accuracy"] > 0.9
    assert 0.15 < unusual["hallucination_rate"] < 0.7
    assert unusual["prior_gap"] > 0.2  # it does look


def test_answers_do_not_depend_on_what_else_is_in_the_batch(shipped: tuple[Any, Any]) -> None:
    shown = looks(5, 1)
    done: list[int] = []
    together = listen(*shipped, shown, batch_size=64, progress=done.append)
    assert listen(*shipped, shown, batch_size=2) == together
    assert sum(done) == questions_of(shown)


def test_its_own_mistakes_become_pairs(shipped: tuple[Any, Any]) -> None:
    rows = own_pairs(*shipped, VLMPairSettings(rows=20, follow=0.0))
    assert 2 <= len(rows) < 20
    assert all(row.chosen != row.rejected for row in rows)


def test_every_word_is_one_token_and_the_chat_template_is_llavas() -> None:
    processor: Any = build_processor()
    tokenizer = processor.tokenizer
    assert all(len(tokenizer.encode(word, add_special_tokens=False)) == 1 for word in words())
    content = [{"type": "image"}, {"type": "text", "text": DESCRIBE[0]}]
    conversation = [{"role": "user", "content": content}, {"role": "assistant", "content": "a Red circle."}]
    text = processor.apply_chat_template(conversation)
    assert text == "USER: <image>\ndescribe the picture . ASSISTANT: a Red circle.</s>"
    ids = processor(text=text, images=[looks(1)[0].image], return_tensors="pt").input_ids[0]
    assert (ids == IMAGE_ID).sum() == 64
    assert ids[0] == tokenizer.bos_token_id
    assert (ids == tokenizer.bos_token_id).sum() == 1
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "describe the picture . a red circle ."
    assert tokenizer.encode("mauve", add_special_tokens=False) == [tokenizer.unk_token_id]


def test_packed_exchanges_are_worth_what_they_are_alone() -> None:
    """The loss over packed rows equals that over conversations of one exchange each, through the processor."""
    torch.manual_seed(0)
    model, processor = build_tiny_llava().double().eval(), build_processor()
    data = conversation_dataset(2, 0, follow=0.5, questions=3, yes_share=0.5)
    packed = answer_loss(model, data, torch.arange(2), data.pictures.double())
    total, count = 0.0, 0
    for row in range(2):
        pixels = to_pixels(data.pictures[row : row + 1]).double()
        for exchange in range(1, 5):
            of_exchange = data.segment[row] == exchange
            words_of, answers = data.tokens[row][of_exchange], data.is_answer[row][of_exchange]
            head = processor(text="USER: <image>", images=[looks(1)[0].image], return_tensors="pt").input_ids[0]
            ids = torch.cat([head, words_of])[None]
            logits = model(input_ids=ids, pixel_values=pixels).logits[0, :-1].log_softmax(-1)
            chosen = logits.gather(-1, ids[0, 1:, None])[:, 0][len(head) - 1 :]
            total -= chosen[answers.bool()].sum().item()
            count += int(answers.sum())
    assert packed.item() == pytest.approx(total / count, rel=1e-5)


def test_words_alone_stand_where_they_stand_behind_a_picture() -> None:
    """Without a picture the loss is that of the text model on words at the positions 0, 1, 66, 67, ..."""
    torch.manual_seed(0)
    model, data = build_tiny_llava().double().eval(), conversation_dataset(1, 0, follow=1, questions=0, yes_share=0.5)
    ids = torch.cat([torch.tensor([BOS_ID, USER_ID]), data.tokens[0]])[None]
    places = torch.cat([torch.arange(2), 2 + 64 + torch.arange(len(data.tokens[0]))])[None]
    hidden = model.model.language_model(input_ids=ids, position_ids=places).last_hidden_state
    chances = model.lm_head(hidden)[0, 1:-1].log_softmax(-1).gather(-1, data.tokens[0][:, None])[:, 0]
    expected = -chances[data.is_answer[0].bool()].mean().item()
    assert answer_loss(model, data, torch.arange(1), None).item() == pytest.approx(expected, rel=1e-6)


def test_pretraining_writes_a_folder_that_plain_transformers_load(tmp_path: Path) -> None:
    images = {"vision_images": 6, "text_images": 6, "images": 6, "vision_batch": 2, "batch": 2, "judged_pictures": 3}
    small = LlavaSettings(vision_steps=2, text_steps=2, steps=2, **images)
    record = pretrain(tmp_path, small, torch.device("cpu"))
    assert AutoModelForImageTextToText.from_pretrained(tmp_path).dtype == torch.float16
    assert set(record["quality"]) == {"with_habits", "without_habits"}  # type: ignore[arg-type]
    assert not list(tmp_path.glob("*.pt"))
