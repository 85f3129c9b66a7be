"""Negatives without a judge: swapped words, blind continuations, M3ID, and a build that can be interrupted."""

import io
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mmalign.data import decode
from mmalign.evaluation.vlm_answers import greedy_answers
from mmalign.negatives import (
    ENGLISH,
    M3ID,
    Answered,
    Decoding,
    Speaker,
    Vocabulary,
    build,
    dropout_ntp,
    generator_of,
    guided,
    m3id_pair,
    playground_vocabulary,
    seed_of,
    swap,
    swapped_pair,
    without_pictures,
)
from mmalign.negatives.m3id import m3id_decoding
from mmalign.playground.captions import caption, parse
from mmalign.playground.scene import sample_scene
from mmalign.training.config import DataConfig
from mmalign.types import ImageBytes, ImagePart, Message, VLMPair
from mmalign.vlm_data import open_source
from tests.vlm.tiny_processors import tiny_processor
from tests.vlm.tiny_vlms import tiny_vlm


def png(seed: int = 0) -> ImageBytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return ImageBytes(f"picture {seed}", data=buffer.getvalue())


def answered(number: int = 0, response: str = "a large solid red circle on a white background") -> Answered:
    return Answered(f"row {number}", (Message("user", (ImagePart(0), "what?")),), response, (png(number),))


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    model: Any = tiny_vlm("llava", dtype=torch.float32)
    return Speaker(model, tiny_processor("llava"), Decoding(max_new_tokens=8))


def test_a_swap_changes_one_phrase_to_another_of_its_group() -> None:
    text = "A red cube to the left of two wooden chairs, behind an orange ball."
    groups: Counter[str] = Counter()
    for seed in range(60):
        found = swap(text, ENGLISH, generator_of(seed))
        assert found is not None
        group = ENGLISH.groups[found.group]
        assert found.before in group
        assert found.after in group
        assert found.after not in text
        assert found.text.count(found.after) == 1
        groups[found.group] += 1
    assert set(groups) == {"colour", "place", "number", "material"}
    assert swap(text, ENGLISH, generator_of(3)) == swap(text, ENGLISH, generator_of(3))


def test_details_of_a_swap() -> None:
    two = Vocabulary({"colour": ("red", "orange"), "place": ("left of", "right of")})
    assert _swapped("A red cube.", two) == "An orange cube."
    assert _swapped("An orange cube.", two) == "A red cube."
    assert _swapped("Left of it.", two) == "Right of it."
    assert _swapped("A redder, infra-red cube.", two) is None  # whole words only
    assert _swapped("A red and an orange cube.", two) is None  # nothing that the text does not hold
    with pytest.raises(ValueError, match="no group 'size'"):
        swap("red", two, generator_of(0), group="size")
    with pytest.raises(ValueError, match="has 1 words"):
        Vocabulary({"colour": ("red",)})
    with pytest.raises(ValueError, match="in the groups 'a' and 'b'"):
        Vocabulary({"a": ("red", "blue"), "b": ("red", "green")})
    with pytest.raises(ValueError, match="lower case"):
        Vocabulary({"a": ("Red", "blue")})


def _swapped(text: str, vocabulary: Vocabulary) -> str | None:
    found = swap(text, vocabulary, generator_of(0))
    return None if found is None else found.text


def test_swapped_captions_of_the_playground_are_captions_of_other_scenes() -> None:
    vocabulary, random = playground_vocabulary(), np.random.default_rng(0)
    readable = 0
    for number in range(60):
        true = caption(sample_scene(random))
        found = swap(true, vocabulary, generator_of(number))
        assert found is not None
        assert found.text != true
        try:
            readable += parse(found.text) != parse(true)
        except ValueError:
            continue
    assert readable >= 54


def test_the_guided_step_is_the_papers() -> None:
    chosen, blind = torch.randn(2, 9).log_softmax(-1), torch.randn(2, 9).log_softmax(-1)
    assert torch.equal(guided(chosen, blind, 0, 0.02), chosen)
    for step in (1, 10, 50):
        g = math.exp(-0.02 * step)
        torch.testing.assert_close(guided(chosen, blind, step, 0.02), chosen + (1 - g) / g * (chosen - blind))


def test_m3id_subtracts_what_the_model_says_blindly() -> None:
    model: Any = tiny_vlm("llava", dtype=torch.float64)
    blind_ids = torch.tensor([[1, 20, 30, 40], [1, 25, 35, 45]])
    said = torch.tensor([[50, 51, 52], [60, 61, 62]])
    prompt = torch.ones(2, 7, dtype=torch.long)
    decoding = M3ID(model, blind_ids, 7, decay=0.3, gate=None)
    torch.manual_seed(0)
    for length in range(4):
        scores = torch.randn(2, 128, dtype=torch.float64)
        got = decoding(torch.cat([prompt, said[:, :length]], dim=1), scores)
        with torch.no_grad():
            logits = model(input_ids=torch.cat([blind_ids, said[:, :length]], dim=1)).logits[:, -1]
        expected = guided(scores.float().log_softmax(-1), logits.float().log_softmax(-1), length, 0.3)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    # Another continuation, as beams make them: nothing of the old one is used.
    other = decoding(torch.cat([prompt, said[:, [2, 0]]], dim=1), scores)
    with torch.no_grad():
        logits = model(input_ids=torch.cat([blind_ids, said[:, [2, 0]]], dim=1)).logits[:, -1]
    expected = guided(scores.float().log_softmax(-1), logits.float().log_softmax(-1), 2, 0.3)
    torch.testing.assert_close(other, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_m3id_that_changes_nothing_leaves_generation_as_it_was(kind: str) -> None:
    model: Any = tiny_vlm(kind, dtype=torch.float32)
    greedy = Speaker(model, tiny_processor(kind), Decoding(max_new_tokens=12, temperature=0))
    row, pictures = answered(), [decode(png(3))]
    plain = greedy.say(row.prompt, pictures, 0)
    assert greedy.say(row.prompt, pictures, 0, m3id={"decay": 1e-12, "gate": None}) == plain
    assert greedy.say(row.prompt, pictures, 0, m3id={"decay": 5.0, "gate": None}) != plain


def test_m3id_in_batches_of_questions_is_m3id_one_by_one() -> None:
    model, processor = tiny_vlm("llava"), tiny_processor("llava")
    greedy, pictures = Speaker(model, processor, Decoding(max_new_tokens=8, temperature=0)), [decode(png(3))] * 2
    questions, changed = ["what?", "and how many of them?"], {"decay": 3.0, "gate": None}
    settings: dict[str, Any] = {"max_new_tokens": 8, "decoding": m3id_decoding(**changed)}
    together = greedy_answers(model, processor, pictures, questions, **settings)
    prompts = [(Message("user", (ImagePart(0), question)),) for question in questions]
    assert together == [greedy.say(prompt, pictures[:1], 0, m3id=changed).strip() for prompt in prompts]
    assert together != [greedy.say(prompt, pictures[:1], 0).strip() for prompt in prompts]


def test_gate_and_plausibility_of_m3id() -> None:
    model: Any = tiny_vlm("llava", dtype=torch.float32)
    ids, prompt = torch.tensor([[1, 20]]), torch.ones(1, 5, dtype=torch.long)
    scores = torch.zeros(1, 128)
    scores[0, 3], scores[0, 4] = 6.0, 5.0  # p = 0.60, 0.22, and 0.0015 each for the rest
    said = torch.cat([prompt, torch.full((1, 40), 9)], dim=1)
    kept = M3ID(model, ids, 5, plausibility=0.1, gate=None)(said, scores)
    assert torch.isfinite(kept[0]).nonzero().flatten().tolist() == [3, 4]
    certain = M3ID(model, ids, 5)(said, scores)  # 0.3, as published
    torch.testing.assert_close(certain, scores.log_softmax(-1))
    assert not torch.equal(M3ID(model, ids, 5, gate=0.9)(said, scores), certain)
    for wrong in ({"decay": 0.0}, {"gate": 1.0}, {"plausibility": 0.0}, {"offset": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            M3ID(model, ids, 5, **wrong)


def test_dropout_ntp_keeps_half_and_goes_on_without_the_picture(speaker: Speaker) -> None:
    row = answered()
    made = dropout_ntp(row, speaker, 5)
    assert isinstance(made, VLMPair)
    assert made.rejected.startswith("a large solid red")
    assert made.chosen == row.response
    assert made.images == row.images
    assert made.extras == {"negative": "dropout_ntp", "kept_characters": len("a large solid red")}
    assert dropout_ntp(row, speaker, 5) == made
    # The continuation does not see the picture.
    assert dropout_ntp(replace(row, images=(png(9),)), speaker, 5) == replace(made, images=(png(9),))
    assert dropout_ntp(row, speaker, 6) != made
    assert dropout_ntp(answered(response="red"), speaker, 0) == "the response is one word and has no half"
    assert "no picture" in str(dropout_ntp(replace(row, images=(), prompt=without_pictures(row.prompt)), speaker, 0))


def test_m3id_pairs_are_both_the_models_own(speaker: Speaker) -> None:
    pairs = [m3id_pair(answered(number), speaker, number, decay=2.0) for number in range(3)]
    made = [pair for pair in pairs if isinstance(pair, VLMPair)]
    assert made
    for pair in made:
        assert pair.chosen != pair.rejected
        assert pair.extras["negative"] == "m3id"
        assert pair.extras["m3id_decay"] == 2.0
        assert pair.extras["response"] == answered().response
    assert m3id_pair(answered(0), speaker, 0, decay=2.0) == pairs[0]


def test_a_model_speaks_the_same_again_and_leaves_the_global_generator_alone(speaker: Speaker) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    row = answered()
    said = [speaker.say(without_pictures(row.prompt), (), seed) for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]
    assert torch.equal(torch.get_rng_state(), state)
    greedy = Speaker(speaker.model, speaker.encoder.processor, Decoding(max_new_tokens=4, temperature=0))
    assert len({greedy.say(without_pictures(row.prompt), (), seed) for seed in range(3)}) == 1
    with pytest.raises(ValueError, match="max_new_tokens"):
        Decoding(max_new_tokens=0)


def test_a_build_goes_on_where_it_stopped_and_says_what_it_left_out(tmp_path: Path) -> None:
    vocabulary = playground_vocabulary()
    rows = [answered(number) for number in range(5)] + [answered(5, "nothing to swap")]
    calls: list[str] = []

    def make(row: Answered, seed: int) -> VLMPair | str:
        calls.append(row.sample_id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return swapped_pair(row, vocabulary, generator_of(seed))

    out, settings = tmp_path / "swaps.parquet", {"method": "text_swap"}
    with pytest.raises(KeyboardInterrupt):
        build(rows, make, out, settings=settings)
    assert not out.exists()
    journal = tmp_path / "swaps.parquet.journal"
    journal.write_text(journal.read_text() + '["row 2", {"chos')  # cut off in the middle of a line
    with pytest.raises(ValueError, match="of other settings"):
        build(rows, make, out, settings={"method": "else"})
    built = build(rows, make, out, settings=settings)
    assert calls == ["row 0", "row 1", "row 2", "row 2", "row 3", "row 4", "row 5"]
    assert (built.pairs, [name for name, _ in built.left_out]) == (5, ["row 5"])
    assert "5 pairs" in str(built)
    assert not journal.exists()
    table = open_source(DataConfig(source="auto", path=str(out)))
    for row in table:
        expected = swapped_pair(rows[int(row.sample_id[4:])], vocabulary, generator_of(seed_of(0, row.sample_id)))
        assert isinstance(expected, VLMPair)
        assert (row.rejected, row.extras) == (expected.rejected, expected.extras)
        assert row.images[0].read() == expected.images[0].read()
    assert b'"method": "text_swap"' in pq.read_schema(out).metadata[b"mmalign"]
    with pytest.raises(ValueError, match="is not overwritten"):
        build(rows, make, out, settings=settings)
    with pytest.raises(ValueError, match="no row gave a pair"):
        build(rows[5:], make, tmp_path / "none.parquet", settings=settings)
