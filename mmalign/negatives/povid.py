"""POVID (arXiv 2402.11411): a response with mistakes written into it, and what the model reads off a noisy picture."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from mmalign.corruptions import check, corrupt
from mmalign.data.decoding import decode
from mmalign.negatives.answers import Answered
from mmalign.negatives.building import generator_of
from mmalign.negatives.kit import Kit, Make
from mmalign.negatives.speaking import Speaker
from mmalign.types import ImagePart, Message, VLMPair

INSTRUCTION = (
    "Below are a question about the picture and its correct answer. Write the answer again with a few mistakes that "
    "somebody who does not see the picture would believe: name things that often go together with the ones mentioned, "
    "give things other colours, sizes, numbers or positions, or relate them wrongly. Keep its length and style. Write "
    "the new answer alone.\nQuestion: {question}\nAnswer: {answer}\nNew answer:"
)
"""What the model is asked; the paper asks GPT-4V for the same kinds of mistakes in words of its own."""


@dataclass(frozen=True)
class PovidText:
    """Mistakes that the model itself writes into the response, in the place of POVID's GPT-4V (stage 1).

    ``instruction``: what it is asked, with {question} and {answer}. ``pictures``: whether it sees the pictures.
    """

    instruction: str = INSTRUCTION
    pictures: bool = True

    speaks: ClassVar[bool] = True
    reads_response: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if "{answer}" not in self.instruction:
            raise ValueError("instruction must hold {answer}, where the response stands (and may hold {question})")

    def open(self, kit: Kit) -> Make:
        """A pair of each row that the model wrote another answer for."""
        return lambda row, seed: self._pair(row, kit.voice, seed)

    def _pair(self, row: Answered, speaker: Speaker, seed: int) -> VLMPair | str:
        asked = self.instruction.replace("{question}", row.prompt[-1].text.strip()).replace("{answer}", row.response)
        shown = row.images if self.pictures else ()
        prompt = (Message("user", (*(ImagePart(number) for number in range(len(shown))), asked)),)
        said = speaker.say(prompt, [decode(image) for image in shown], seed, name=row.sample_id).strip()
        if not said:
            return "the model wrote nothing"
        if said.split() == row.response.split():
            return "the model wrote the response again without a mistake"
        pair = row.against(said)
        return replace(pair, extras={**pair.extras, "negative": "povid_text"})


@dataclass(frozen=True)
class PovidImage:
    """The likeliest token at each place of the response, read from the picture under noise (POVID's stage 2).

    ``step``: of the noise schedule, 500 in the published code.
    """

    step: int = 500

    speaks: ClassVar[bool] = True
    reads_response: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check("noise", {"step": self.step})

    def open(self, kit: Kit) -> Make:
        """A pair of each row with a picture under which the model reads something else."""
        return lambda row, seed: povid_image(row, kit.voice, seed, step=self.step)


@torch.no_grad()
def povid_image(row: Answered, speaker: Speaker, seed: int, *, step: int = 500) -> VLMPair | str:
    """a_t = argmax p(. | noisy picture, prompt, y_<t): every token of the response y as the noise would have it.

    Teacher-forced as published, so it can differ from the response in single tokens, parts of words among them. The
    published loss scores each a_t after the response's own tokens, with tokens drawn anew from policy and reference at
    each step; a row holds a text, made once, which is scored as it stands.
    """
    if not row.images:
        return "the row has no picture, so there is nothing to make noisy"
    generator = generator_of(seed)
    noisy = [corrupt(decode(image), "noise", generator, step=step) for image in row.images]
    told = speaker.encoder.prompt(row.prompt, noisy, row.sample_id)
    answer = speaker.encoder.answer(told, row.response, row.sample_id).input_ids[:-1]  # all but the end token
    logits = speaker.logits(told, answer)
    read = logits.argmax(dim=-1).cpu()
    said = speaker.after(torch.tensor([], dtype=torch.long), read).strip()
    if not said or said.split() == row.response.split():
        return "the model read the same under noise" if said else "the model read nothing under noise"
    pair = row.against(said)
    changed = int((read != answer).sum())
    return replace(pair, extras={**pair.extras, "negative": "povid_image", "tokens": len(answer), "changed": changed})
