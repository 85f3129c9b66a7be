"""MIA-DPO (arXiv 2410.17637): questions about one picture among several, and answers that looked at the wrong one."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from PIL import Image

from mmalign.corruptions import COLLAGES, Collage, check, corrupt
from mmalign.data.decoding import decode
from mmalign.models.vlm_encode import Prompt
from mmalign.negatives.answers import Answered
from mmalign.negatives.attending import attended, layers_of, tokens_in_boxes, tokens_of_pictures
from mmalign.negatives.building import generator_of, seed_of
from mmalign.negatives.kit import Kit, Make
from mmalign.negatives.picture_index import digest
from mmalign.negatives.speaking import Speaker
from mmalign.types import ImageBytes, ImagePart, Message, Part, VLMPair

# Kind -> number of pictures -> the largest share of attention on the right picture at which an answer is a rejected
# one: make_data_duotu.py, make_data_ping.py and make_data_pip.py of Liuziyu77/MIA-DPO.
LIMITS: dict[str, dict[int, float]] = {
    "sequence": {2: 0.8, 3: 0.7, 4: 0.6, 5: 0.6},
    "grid": {2: 0.7, 3: 0.6, 4: 0.5, 6: 0.4, 9: 0.3},
    "picture_in_picture": {2: 0.8},
}
ANY = "any"
TRIES = 50  # draws of another row for each other picture


@dataclass(frozen=True)
class MIA:
    """The question asked about one picture among several; rejected is the model's answer that looked elsewhere.

    ``kind``: sequence, grid, picture_in_picture, or any of them, drawn for each row. ``pictures``: how many in all
    (sequence 2 to 5; grid 2, 3, 4, 6 or 9; drawn where not given). ``limit``: the share of attention on the right
    picture up to which an answer is taken, by default the published one of kind and number. ``layer``: whose attention
    is read, by default the middle one. ``least_perplexity`` and ``longest`` (characters of the right answer): the
    other two published filters. ``noise``: step of diffusion noise on the pictures while the model answers, as the
    published code puts on grids and pictures in pictures; the row keeps them clean.
    """

    kind: str = ANY
    pictures: int | None = None
    limit: float | None = None
    layer: int | None = None
    least_perplexity: float = 1.1
    longest: int = 512
    noise: int | None = None

    speaks: ClassVar[bool] = True
    reads_response: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind not in (ANY, *LIMITS):
            raise ValueError(f"kind={self.kind!r} must be one of {', '.join((ANY, *LIMITS))}")
        known = sorted({number for kind in self.kinds for number in LIMITS[kind]})
        if self.pictures is not None and (self.kind == ANY or self.pictures not in known):
            raise ValueError(
                f"pictures={self.pictures!r}: name a kind, and one of its numbers ({known} for {self.kind})"
            )
        if self.limit is not None and not 0 < self.limit <= 1:
            raise ValueError(f"limit={self.limit!r} must lie above 0 and up to 1")
        if self.least_perplexity < 1 or self.longest < 1:
            raise ValueError(
                f"least_perplexity={self.least_perplexity!r} and longest={self.longest!r} must be at least 1"
            )
        if self.noise is not None:
            check("noise", {"step": self.noise})

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds that rows are drawn from."""
        return tuple(LIMITS) if self.kind == ANY else (self.kind,)

    def open(self, kit: Kit) -> Make:
        """A pair of each row of one turn with one picture, where the model answers while looking elsewhere."""
        layers = len(layers_of(kit.voice.model))
        if self.layer is not None and not 0 <= self.layer < layers:
            raise ValueError(f"layer={self.layer!r} must lie between 0 and {layers - 1}: the model has {layers}")
        return lambda row, seed: self._pair(row, kit, seed)

    def _pair(self, row: Answered, kit: Kit, seed: int) -> VLMPair | str:
        if len(row.images) != 1 or len(row.prompt) != 1:
            return f"the row has {len(row.images)} pictures and {len(row.prompt)} turns; one of each can be augmented"
        if len(row.response) > self.longest:
            return f"the response has more than {self.longest} characters"
        generator = generator_of(seed)
        kind = self.kinds[_draw(generator, len(self.kinds))]
        number = self.pictures or list(LIMITS[kind])[_draw(generator, len(LIMITS[kind]))]
        others = _others(kit.rows, row, number - 1, generator)
        if len(others) < number - 1:
            return f"{len(others)} other pictures were found among the rows, and {number - 1} are wanted"
        collage = COLLAGES[kind](decode(row.images[0]), others, generator)
        if kind != "sequence":
            collage = collage.squared()
        asked = replace(row, prompt=(_asked(row.prompt[0], collage),), images=_saved(collage, row, kind))
        limit = LIMITS[kind][number] if self.limit is None else self.limit
        return self._answered(asked, kit.voice, seed, collage, kind, number, limit)

    def _answered(
        self, row: Answered, speaker: Speaker, seed: int, collage: Collage, kind: str, number: int, limit: float
    ) -> VLMPair | str:
        shown = list(collage.images)
        if self.noise is not None and kind != "sequence":
            shown = [corrupt(image, "noise", generator_of(seed_of(seed, "noise")), step=self.noise) for image in shown]
        said = speaker.say(row.prompt, shown, seed_of(seed, "answer"), name=row.sample_id).strip()
        if not said or said.split() == row.response.split():
            return "the model gave the right answer" if said else "the model said nothing"
        told = speaker.encoder.prompt(row.prompt, shown, row.sample_id)
        looked = attended(speaker, told, said, layer=self.layer, name=row.sample_id)
        share = share_on_target(speaker, told, looked.weights, collage, row.sample_id)
        if share > limit:
            return f"the model looked at the right picture (share of attention above {limit:g})"
        if looked.perplexity <= self.least_perplexity:
            return f"the model was sure of its answer (perplexity up to {self.least_perplexity:g})"
        how = {"negative": "mia", "kind": kind, "pictures": number, "attention_share": round(share, 4)}
        how |= {"limit": limit, "perplexity": round(looked.perplexity, 4), "pointer": collage.pointer}
        pair = row.against(said)
        return replace(pair, extras={**pair.extras, **how})


def share_on_target(speaker: Speaker, told: Prompt, weights: torch.Tensor, collage: Collage, name: str) -> float:
    """Mean attention per token of the right picture / the sum of those means over all pictures.

    Of a picture in a picture: the sum on the inner one / the sum on the whole. ``told`` is the prompt that shows them.
    """
    groups = tokens_of_pictures(speaker, told, collage.images, name)
    if len(collage.images) == 1:
        size = collage.images[0].size
        boxes = collage.boxes or (collage.box, (0, 0, *size))
        groups = tokens_in_boxes(speaker.model, told, groups[0], size, boxes, name)
        if not collage.boxes:
            return float(weights[groups[0]].sum() / weights[groups[1]].sum())
    means = [float(weights[tokens].mean()) for tokens in groups]
    right = collage.shown if len(collage.images) > 1 else collage.boxes.index(collage.box)
    return means[right] / sum(means)


def _asked(message: Message, collage: Collage) -> Message:
    """The row's question about the collage: its pictures first, then the words that point, then the question."""
    parts: list[Part] = [ImagePart(0)]
    if len(collage.images) > 1:
        parts = []
        for number in range(len(collage.images)):
            parts += [f"Picture {number + 1}: ", ImagePart(number), "\n"]
    question = message.text.strip()
    return Message(message.role, (*parts, f"{collage.pointer}{question}"))


def _saved(collage: Collage, row: Answered, kind: str) -> tuple[ImageBytes, ...]:
    """The collage's pictures as PNG."""
    saved = []
    for number, image in enumerate(collage.images):
        stream = io.BytesIO()
        image.save(stream, "PNG")
        saved.append(ImageBytes(f"{row.sample_id} {kind} {number}", data=stream.getvalue()))
    return tuple(saved)


def _others(rows: Sequence[Answered], row: Answered, wanted: int, generator: torch.Generator) -> list[Image.Image]:
    """Pictures of other rows, none of them twice and none the row's own."""
    seen = {digest(row.images[0])}
    found: list[Image.Image] = []
    for _ in range(TRIES * wanted):
        if len(found) == wanted:
            break
        other = rows[_draw(generator, len(rows))]
        if other.unusable or not other.images or digest(other.images[0]) in seen:
            continue
        seen.add(digest(other.images[0]))
        found.append(decode(other.images[0]))
    return found


def _draw(generator: torch.Generator, number: int) -> int:
    return int(torch.randint(number, (), generator=generator))
