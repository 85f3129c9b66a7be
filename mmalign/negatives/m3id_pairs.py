"""M3ID-DPO: what the model says when it leans on the picture, against what it says when it does not look."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from mmalign.data.decoding import decode
from mmalign.negatives.answers import Answered, without_pictures
from mmalign.negatives.kit import Kit, Make
from mmalign.negatives.m3id import DECAY, GATE, check_m3id
from mmalign.negatives.speaking import Speaker, sentences
from mmalign.types import VLMPair

Rejected = Literal["blind", "plain"]


@dataclass(frozen=True)
class M3IDPairs:
    """The model's answer under M3ID, chosen, against its own without the picture, or without M3ID (M3ID-DPO)."""

    rejected: Rejected = "blind"
    decay: float = DECAY
    gate: float | None = GATE
    offset: int = 0
    plausibility: float | None = None

    speaks: ClassVar[bool] = True
    reads_response: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_m3id(**self.decoding)

    @property
    def decoding(self) -> dict[str, Any]:
        """Keywords of :class:`mmalign.negatives.m3id.M3ID`."""
        return {"decay": self.decay, "gate": self.gate, "offset": self.offset, "plausibility": self.plausibility}

    def open(self, kit: Kit) -> Make:
        """A pair of each row with a picture."""
        return lambda row, seed: m3id_pair(row, kit.voice, seed, rejected=self.rejected, **self.decoding)


def m3id_pair(
    row: Answered, speaker: Speaker, seed: int, *, rejected: Rejected = "blind", **m3id: Any
) -> VLMPair | str:
    """What the model says under M3ID, chosen, against what it says by itself (M3ID-DPO, arXiv 2403.14003).

    ``rejected``: as published, what it goes on to say ``blind``, without the picture, after the first sentence (of the
    chosen response, where it has more than one, so that both are about the same); or ``plain``, what it says with the
    picture and without M3ID. Both sides are the model's own, so the row's response is not used and stays in ``extras``.
    Gives why there is no pair where both are the same or one is empty.
    """
    if not row.images:
        return "the row has no picture, so M3ID has nothing to lean on"
    pictures = [decode(image) for image in row.images]
    chosen = speaker.say(row.prompt, pictures, seed, m3id=m3id, name=row.sample_id).strip()
    if not chosen:
        return "the model said nothing"
    how: dict[str, Any] = {"negative": "m3id", **{f"m3id_{name}": value for name, value in m3id.items()}}
    if rejected == "plain":
        other = speaker.say(row.prompt, pictures, seed, name=row.sample_id).strip()
    else:
        said = sentences(chosen)
        kept = said[0] if len(said) > 1 else ""
        how["kept_characters"] = len(kept)
        other = (kept + speaker.say(without_pictures(row.prompt), (), seed, begun=kept, name=row.sample_id)).strip()
    if not other:
        return "the model said nothing"
    if other == chosen:
        return "the model said the same with M3ID and without"
    how |= {"response": row.response} if row.response else {}
    return replace(row.against(other, chosen=chosen), extras={**row.extras, **how})
