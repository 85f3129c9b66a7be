"""Re-Align (arXiv 2502.13146): the response's telling words filled in again while looking at a similar picture."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from mmalign.data.decoding import decode
from mmalign.models.vision_encoder import TowerOf, VisionEncoder, encoder_folder, vision_encoder
from mmalign.negatives.answers import Answered
from mmalign.negatives.kit import Kit, Make
from mmalign.negatives.methods import TextSwap
from mmalign.negatives.picture_index import Pictures, index_of
from mmalign.negatives.similarity import LEXICAL, Similarity, check_similarity, similarity_of
from mmalign.negatives.speaking import Speaker
from mmalign.negatives.text_swaps import Vocabulary, masked
from mmalign.types import ImagePart, Message, VLMPair

MARK = "[MASK]"
OWN = "own"
FILL = (
    "Each [MASK] in the text below stands for missing words. Fill them in so that the text describes this picture, and "
    "change nothing else. Write the whole text alone.\nQuestion: {question}\nText: {text}\nWhole text:"
)


@dataclass(frozen=True)
class ReAlign:
    """The response with its telling words filled in anew for a similar picture, which is kept for @retrieved.

    ``encoder``: folder of a vision encoder (transformers or open_clip), or ``own``, the model's own, as published.
    ``k``: how many of the most similar pictures are tried in turn. ``most_alike``: a filled-in text counts where its
    similarity to the response is below (0.95 published, by a sentence encoder; ``similarity`` names its folder, or
    ``lexical``). ``vocabulary``: whose words are masked, as in ``text_swap``; the published masks are not. ``index``:
    folder that keeps the index of pictures for other runs. ``fill``: what the model is asked, with {text}.
    """

    encoder: str = OWN
    k: int = 10
    most_alike: float = 0.95
    similarity: str = LEXICAL
    vocabulary: str = "english"
    index: str | None = None
    fill: str = FILL

    speaks: ClassVar[bool] = True
    reads_response: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k!r} must be at least 1")
        if not 0 < self.most_alike <= 1:
            raise ValueError(f"most_alike={self.most_alike!r} must lie above 0 and up to 1")
        if "{text}" not in self.fill:
            raise ValueError("fill must hold {text}, where the masked response stands (and may hold {question})")
        if self.encoder != OWN and not encoder_folder(self.encoder).is_dir():
            raise ValueError(f"encoder={self.encoder!r} is no folder; name one of a vision encoder, or {OWN}")
        check_similarity(self.similarity)
        self.words  # noqa: B018 - a vocabulary that cannot be read is an error before a model is loaded

    @property
    def words(self) -> Vocabulary:
        """Lists of words that are masked."""
        return TextSwap(vocabulary=self.vocabulary).words

    def open(self, kit: Kit) -> Make:
        """Embeds every picture once, then makes a pair of each row with one picture and words to mask."""
        encoder = own_encoder(kit.voice) if self.encoder == OWN else vision_encoder(self.encoder)
        folder = kit.folder / "pictures" if self.index is None else Path(self.index).expanduser()
        pictures = index_of(kit.rows, encoder, folder)
        words, measure = self.words, similarity_of(self.similarity)
        return lambda row, seed: self._pair(row, kit.voice, seed, pictures, words, measure)

    def _pair(
        self, row: Answered, speaker: Speaker, seed: int, pictures: Pictures, words: Vocabulary, measure: Similarity
    ) -> VLMPair | str:
        if len(row.images) != 1:
            return f"the row has {len(row.images)} pictures, and one is looked for by another"
        text, phrases = masked(row.response, words, MARK)
        if not phrases:
            return "the response holds no word of the vocabulary that could be masked"
        asked = self.fill.replace("{question}", row.prompt[-1].text.strip()).replace("{text}", text)
        alike = 1.0
        for rank, (picture, cosine) in enumerate(pictures.nearest(row.images[0], self.k), start=1):
            prompt = (Message("user", (ImagePart(0), asked)),)
            said = speaker.say(prompt, [decode(picture)], seed, name=row.sample_id).strip()
            if not said or MARK in said or said.split() == row.response.split():
                continue
            alike = measure(said, row.response)
            if alike < self.most_alike:
                how = {"negative": "realign", "masked": phrases, "rank": rank, "similarity": round(alike, 4)}
                how["retrieved_cosine"] = [round(cosine, 6)]
                pair = row.against(said)
                return replace(pair, branch_images={"retrieved": (picture,)}, extras={**pair.extras, **how})
        return f"none of the {self.k} most similar pictures gave a text less alike than {self.most_alike:g}"


def own_encoder(speaker: Speaker) -> VisionEncoder:
    """The vision encoder of the model that speaks, as the published index was built by."""

    def media_of(image: object) -> dict[str, torch.Tensor]:
        told = speaker.encoder.prompt((Message("user", (ImagePart(0), "?")),), [image], "a picture")  # type: ignore[list-item]
        takes = ("pixel_values", "image_grid_thw", "image_sizes", "pixel_attention_mask", "batch_num_images")
        return {name: value for name, value in told.media.items() if name in takes}

    return TowerOf(speaker.model, media_of, speaker.fingerprint())
