"""BDHS by its published algorithm, POVID's two kinds of rejected responses, and M3ID-DPO's."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from mmalign.corruptions import corrupt
from mmalign.data import decode
from mmalign.negatives import Answered, Decoding, Speaker, generator_of, m3id_pair, method_of, without_pictures
from mmalign.negatives.bdhs import Gate, bdhs_pair
from mmalign.negatives.povid import povid_image
from mmalign.negatives.similarity import lexical
from mmalign.types import ImagePart, Message, VLMPair
from tests.vlm.tiny_processors import tiny_processor
from tests.vlm.tiny_vlms import tiny_vlm
from tests.vlm.vlm_rows import picture

RESPONSE = "Yes, it is red. The cube stands on a table."
QUESTION = (Message("user", (ImagePart(0), "Is it red?")),)


def answered(response: str = RESPONSE, number: int = 0) -> Answered:
    return Answered(f"row {number}", QUESTION, response, (picture(number),))


class Scripted:
    """In the place of a speaker: ends every sentence with ``ends`` of the round, and keeps what it was asked."""

    def __init__(self, *rounds: str) -> None:
        self.rounds, self.asked = rounds, list[dict[str, Any]]()

    def say_each(
        self, messages: Sequence[Message], images: Sequence[Image.Image], seed: int, begun: Sequence[str], **how: Any
    ) -> list[str]:
        self.asked.append({"messages": messages, "images": images, "seed": seed, "begun": list(begun), **how})
        return [self.rounds[min(len(self.asked), len(self.rounds)) - 1]] * len(begun)


def made(speaker: Any, gate: Gate, seed: int = 0, row: Answered | None = None, **how: Any) -> VLMPair:
    pair = bdhs_pair(row or answered(), speaker, seed, gate, **(how or {"threshold": 0.99}))
    assert isinstance(pair, VLMPair), pair
    return pair


def test_each_sentence_is_begun_after_the_responses_own_sentences() -> None:
    kept, firsts = set(), set()
    for seed in range(40):
        speaker = Scripted(" END.")
        pair = made(speaker, Gate(1, 0.97, lexical), seed)
        [asked] = speaker.asked
        first, second = asked["begun"]
        assert (asked["sentence"], asked["hide"]) == (True, 0.99)
        # The second sentence follows the response's first one as it is, whatever became of that.
        assert second.startswith("Yes, it is red.")
        assert "The cube stands on a table.".startswith(second.removeprefix("Yes, it is red.").strip())
        assert pair.rejected == f"{first} END.{second.removeprefix('Yes, it is red.')} END.".strip()
        assert (pair.chosen, pair.images) == (RESPONSE, answered().images)
        kept.add(second)
        firsts.add(first)
    assert len(kept) == 6  # cut before each of its six words
    # A yes is turned into a no half of the time, and then it stays.
    assert firsts == {"", "Yes,", "Yes, it", "Yes, it is", "No", "No,", "No, it", "No, it is"}


def test_yes_and_no_alone() -> None:
    rejected = {made(Scripted("."), Gate(1, 0.97, lexical), seed, answered("No")).rejected for seed in range(20)}
    assert rejected == {".", "Yes."}
    assert made(Scripted("Nobody"), Gate(1, 1.0, lexical), 0, answered("Nothing.")).rejected == "Nobody"


def test_what_is_too_alike_is_drawn_again_and_the_last_round_is_not_guided() -> None:
    differing = lambda said, _response: 0.1 if "far" in said else 0.99  # noqa: E731
    speaker = Scripted(" near.", " near.", " far.")
    pair = made(speaker, Gate(5, 0.97, differing))
    assert len(speaker.asked) == 3
    assert len({asked["seed"] for asked in speaker.asked}) == 3
    assert pair.extras == {"negative": "bdhs", "iterations": 3, "guided": True, "similarity": 0.1}
    speaker = Scripted(" near.")
    pair = made(speaker, Gate(4, 0.97, differing))  # taken however alike, as published
    assert [asked["begun"] for asked in speaker.asked][-1] == [""]
    assert [asked["sentence"] for asked in speaker.asked] == [True, True, True, False]
    assert pair.rejected == "near."
    assert pair.extras == {"negative": "bdhs", "iterations": 4, "guided": False, "similarity": 0.99}
    same = bdhs_pair(answered("It."), Scripted("It."), 0, Gate(2, 0.97, lexical), threshold=1)  # type: ignore[arg-type]
    assert same == "the model said the response itself in all of 2 iterations"
    silent = bdhs_pair(answered("It."), Scripted(""), 0, Gate(2, 0.97, lexical), threshold=1)  # type: ignore[arg-type]
    assert silent == "the model said nothing with the picture hidden"
    blind = bdhs_pair(replace(answered(), images=()), Scripted("x"), 0, Gate(1, 1, lexical), threshold=1)  # type: ignore[arg-type]
    assert "no picture" in str(blind)


def test_the_noisy_variant_shows_noise_and_hides_nothing() -> None:
    speaker = Scripted(" near.", " END.")
    row = answered()
    made(speaker, Gate(3, 0.97, lambda said, _: float("near" in said)), step=300)
    shown = [asked["images"][0] for asked in speaker.asked]
    assert [asked["hide"] for asked in speaker.asked] == [0.0, 0.0]
    for asked, image in zip(speaker.asked, shown, strict=True):
        expected = corrupt(decode(row.images[0]), "noise", generator_of(asked["seed"]), step=300)
        assert image.tobytes() == expected.tobytes()
    assert shown[0].tobytes() != shown[1].tobytes()


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker(tiny_vlm("llava", dtype=torch.float32), tiny_processor("llava"), Decoding(max_new_tokens=8))


def test_with_all_of_the_picture_hidden_only_its_place_is_left(speaker: Speaker) -> None:
    gate = Gate(3, 0.97, lexical)
    pairs = [bdhs_pair(answered(number=number), speaker, 7, gate, threshold=1.0) for number in (0, 5)]
    first, second = pairs
    assert isinstance(first, VLMPair)
    assert isinstance(second, VLMPair)
    assert first.rejected == second.rejected
    assert bdhs_pair(answered(), speaker, 7, gate, threshold=1.0) == first
    assert bdhs_pair(answered(), speaker, 8, gate, threshold=1.0) != first


def test_povid_reads_the_likeliest_token_at_each_place_under_noise(speaker: Speaker) -> None:
    row, seed = answered("A red cube."), 3
    pair = povid_image(row, speaker, seed, step=400)
    assert isinstance(pair, VLMPair)
    noisy = corrupt(decode(row.images[0]), "noise", generator_of(seed), step=400)
    told = speaker.encoder.prompt(row.prompt, [noisy], "row")
    tokenizer = speaker.encoder.tokenizer
    answer = torch.tensor(tokenizer("A red cube.", add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        ids = torch.cat([told.input_ids, answer])[None]
        out = speaker.model(input_ids=ids, pixel_values=told.media["pixel_values"])
    likeliest = out.logits[0, len(told.input_ids) - 1 : -1].argmax(-1)
    assert pair.rejected == tokenizer.decode(likeliest, skip_special_tokens=True).strip()
    assert pair.extras["tokens"] == len(answer)
    assert pair.extras["changed"] == int((likeliest != answer).sum())
    assert "no picture" in str(povid_image(replace(row, images=()), speaker, 0))


def test_povid_asks_the_model_itself_for_mistakes(speaker: Speaker) -> None:
    method: Any = method_of("povid_text", {"instruction": "{question} {answer} Wrong:"})
    asked: list[Any] = []

    class Writing:
        def say(self, messages: Any, images: Any, seed: int, **_: Any) -> str:
            asked.append((messages, len(images), seed))
            return " A blue cube. "

    pair = method._pair(answered(), Writing(), 4)
    assert (pair.rejected, pair.extras) == ("A blue cube.", {"negative": "povid_text"})
    assert asked == [((Message("user", (ImagePart(0), f"Is it red? {RESPONSE} Wrong:")),), 1, 4)]
    assert "without a mistake" in method._pair(answered("A blue  cube."), Writing(), 4)
    blind: Any = method_of("povid_text", {"pictures": False})
    assert isinstance(blind._pair(answered(), speaker, 0), VLMPair)
    with pytest.raises(ValueError, match=r"must hold \{answer\}"):
        method_of("povid_text", {"instruction": "Lie."})


def test_m3id_pairs_reject_what_is_said_without_looking_on(speaker: Speaker) -> None:
    found = {seed: m3id_pair(answered(), speaker, seed, decay=0.5, gate=None) for seed in range(5)}
    seed, pair = next((seed, pair) for seed, pair in found.items() if isinstance(pair, VLMPair))
    assert pair.chosen == speaker.say(QUESTION, [decode(picture(0))], seed, m3id={"decay": 0.5, "gate": None}).strip()
    plain = speaker.say(without_pictures(QUESTION), (), seed)
    assert pair.rejected == plain.strip()  # one sentence: nothing to go on from
    assert (pair.extras["kept_characters"], pair.extras["m3id_gate"], pair.extras["response"]) == (0, None, RESPONSE)

    class Chatty:
        def say(self, _messages: Any, images: Any, _seed: int, *, begun: str = "", m3id: Any = None, name: str) -> str:
            return "A red cube. It is big." if m3id else f"{' It is small.' if begun else 'Else.'}{len(images)}"

    pair = m3id_pair(answered(), Chatty(), 2, decay=0.5)  # type: ignore[arg-type]
    assert isinstance(pair, VLMPair)
    assert (pair.chosen, pair.rejected) == ("A red cube. It is big.", "A red cube. It is small.0")
    pair = m3id_pair(answered(""), Chatty(), 2, rejected="plain", decay=0.5)  # type: ignore[arg-type]
    assert isinstance(pair, VLMPair)
    assert pair.rejected == "Else.1"
