"""Conversations as published formats write them, and drafts made of them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmalign.types import Role
from mmalign.vlm_data.drafts import Broken, Draft, Marks, shortened, with_media_first

SPEAKERS: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "llava": "assistant",
    "system": "system",
}
Turn = tuple[str, str]  # who speaks, in the file's own word, and what
_VICUNA = re.compile(r"\s*(USER|ASSISTANT):\s?")


def turns_in(fields: Mapping[str, Any], name: str, speaker: str = "from", text: str = "value") -> list[Turn]:
    """Turns of field ``name``, a list of objects with ``speaker`` and ``text``. Broken for anything else."""
    given = fields.get(name)
    if not isinstance(given, list | tuple) or not given:
        raise Broken(f"{name}={shortened(given)} must be a list of turns")
    return [turn_of(turn, f"{name}[{number}]", speaker, text) for number, turn in enumerate(given)]


def turn_of(turn: Any, name: str, speaker: str = "from", text: str = "value") -> Turn:
    """One turn as (who, what)."""
    if not isinstance(turn, Mapping) or not isinstance(turn.get(speaker), str) or not isinstance(turn.get(text), str):
        raise Broken(f"{name}={shortened(turn)} must be an object with the texts {speaker} and {text}")
    return turn[speaker], turn[text]


def role_of(speaker: str, name: str) -> Role:
    """The role of a speaker. Broken for one who has none."""
    if speaker not in SPEAKERS:
        raise Broken(f"{name}: {speaker!r} is none of the speakers {', '.join(SPEAKERS)}")
    return SPEAKERS[speaker]


def drafted(
    turns: Sequence[Turn],
    chosen: str,
    rejected: str,
    *,
    images: Sequence[Any] = (),
    videos: Sequence[Any] = (),
    marks: Marks | None = None,
    **others: Any,
) -> Draft:
    """A draft of ``turns`` (the prompt) and both responses; ``others`` are further fields of the draft."""
    marks = marks or Marks()
    messages = [marks.message(role_of(who, f"turn {number}"), text) for number, (who, text) in enumerate(turns)]
    shown = images if others.get("chosen_images") is None else others["chosen_images"]
    return Draft(
        prompt=with_media_first(messages, len(shown), len(videos)),
        chosen=marks.response(chosen, "chosen"),
        rejected=marks.response(rejected, "rejected"),
        images=images,
        videos=videos,
        **others,
    )


def last_answers(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> tuple[list[Turn], str, str]:
    """(turns before, chosen answer, rejected answer) of two conversations that differ in their last turn.

    Broken where an earlier turn differs as well: what follows it would then answer different histories.
    """
    for side, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or SPEAKERS.get(turns[-1][0]) != "assistant":
            raise Broken(f"the {side} conversation must end with the assistant's turn")
    if len(chosen) != len(rejected):
        raise Broken(f"the conversations have {len(chosen)} and {len(rejected)} turns; only the last one may differ")
    for number, (one, other) in enumerate(zip(chosen[:-1], rejected[:-1], strict=True)):
        if one != other:
            raise Broken(
                f"turn {number} differs between the sides ({shortened(one[1], 30)} and {shortened(other[1], 30)}); "
                "only the last answer may: make a row for each answer, with the better ones as its history"
            )
    return list(chosen[:-1]), chosen[-1][1], rejected[-1][1]


def from_vicuna(prompt: str) -> list[Turn]:
    """Turns of a prompt in Vicuna's template ("... USER: ... ASSISTANT:"); another text is one turn of the user."""
    pieces = _VICUNA.split(prompt)
    if len(pieces) < 4 or pieces[-2] != "ASSISTANT" or pieces[-1].strip() or pieces[1] != "USER":
        return [("user", prompt)]
    system, speakers, texts = pieces[0].strip(), pieces[1:-2:2], pieces[2:-2:2]
    turns = [("user" if who == "USER" else "assistant", text) for who, text in zip(speakers, texts, strict=True)]
    return [("system", system), *turns] if system else turns
