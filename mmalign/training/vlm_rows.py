"""Rows of vision-language models as the trainer's data workers load and collate them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from PIL.Image import Image
from torch import Tensor

from mmalign.adapters import Context, Response, VLMAdapter, VLMBatch
from mmalign.adapters.vlm_checks import check_response
from mmalign.data import RowTable, decode
from mmalign.models.vlm import VLMComponents
from mmalign.models.vlm_encode import Prompt, VLMEncoder
from mmalign.references.cached import Mark
from mmalign.training.order import stable_hash
from mmalign.training.task import RowKey
from mmalign.training.vlm_branches import GOLD, NO_PICTURES, Branch, Change, gold_of
from mmalign.training.vlm_kept import mark_of
from mmalign.types import CHOSEN, REJECTED, Clip, ImageBytes, TokenWeights, Video, VLMPair, without_pictures
from mmalign.vlm_data.clips import clip_of
from mmalign.vlm_data.segments import weigh_changes

FRAMES = 8


@dataclass(frozen=True)
class VLMItem:
    """One visit of one row. ``contexts``: its prompts, one for each set of pictures; ``responses``: branch -> response.

    A branch that the row does not have (``chosen@retrieved`` of a row without) is missing. ``unusable``: why the row
    counts for nothing, "" where all is well.
    """

    key: RowKey
    sample_id: str
    contexts: tuple[Context, ...]
    responses: Mapping[str, Response]
    preference: float = 1.0
    margin: float | None = None
    unusable: str = ""


@dataclass(frozen=True)
class VLMRowBatch:
    """Rows put together. ``batch`` is what the adapter scores; ``unusable``: sample id -> why it counts for nothing.

    ``marks``: hashes of each row's pixels and text, by which kept reference scores are told from those of other ones.
    """

    keys: tuple[RowKey, ...]
    batch: VLMBatch
    unusable: Mapping[str, str]
    marks: tuple[Mark, ...] = ()

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Names of the rows."""
        return self.batch.sample_ids

    @property
    def present(self) -> dict[str, Tensor]:
        """Branch -> [batch], rows that count."""
        return dict(self.batch.present)

    def to(self, device: torch.device) -> "VLMRowBatch":
        """The same batch on ``device``."""
        return replace(self, batch=self.batch.to(device))

    def pin_memory(self) -> "VLMRowBatch":
        """The same batch in page-locked memory."""
        return replace(self, batch=self.batch.changed(Tensor.pin_memory))


class VLMRows:
    """Decoding, corruption, templating and tokenising of one run's rows; used by data workers.

    Corrupted pictures are drawn from the run's seed, the sample id and the epoch alone, so policy, reference, and any
    other order of rows see the same ones. ``frames``: of a video, so many are shown at most. ``changed_weight``: what
    the words count that chosen and rejected do not share.
    """

    def __init__(
        self,
        tables: Mapping[str, RowTable[VLMPair]],
        components: VLMComponents,
        adapter: VLMAdapter,
        branches: Sequence[Branch],
        *,
        max_length: int,
        seed: int = 0,
        frames: int = FRAMES,
        changed_weight: float | None = None,
    ) -> None:
        self.seed, self.frames, self.changed_weight = seed, frames, changed_weight
        self.tables, self.model, self.adapter, self.branches = tables, components.model, adapter, branches
        self.encoder = VLMEncoder(components.processor, max_length=max_length)

    def load(self, key: RowKey) -> VLMItem:
        """The row of ``key``; one that cannot be used is named, with the reason, and counts for nothing."""
        row = self.tables[key.split][key.index]
        try:
            return self._encoded(key, self._weighed(row))
        except (ValueError, OSError) as error:
            reason = str(error).removeprefix(f"{row.sample_id}: ")
            return VLMItem(key, row.sample_id, (), {}, row.preference, row.margin, reason)

    def collate(self, items: Sequence[VLMItem]) -> VLMRowBatch:
        """Rows as one batch. What a row lacks is a stand-in of two tokens there, and not ``present``."""
        contexts: list[Context] = []
        starts = []
        for item in items:
            starts.append(len(contexts))
            contexts += item.contexts
        stand_in = Response(len(contexts), torch.tensor([self.encoder.tokenizer.eos_token_id]))
        responses: dict[str, tuple[Response, ...]] = {}
        present: dict[str, Tensor] = {}
        for branch in self.branches:
            found = [item.responses.get(branch.name) for item in items]
            responses[branch.name] = tuple(
                stand_in if one is None else replace(one, context=start + one.context)
                for start, one in zip(starts, found, strict=True)
            )
            present[branch.name] = torch.tensor([one is not None for one in found])
        if any(stand_in in many for many in responses.values()):
            contexts.append(self.adapter.context(self.model, stand_in.input_ids))
        margins = [item.margin for item in items]
        batch = VLMBatch(
            tuple(contexts),
            responses,
            preference=torch.tensor([item.preference for item in items]),
            margin=torch.tensor([0.0 if margin is None else margin for margin in margins]),
            present=present,
            sample_ids=tuple(item.sample_id for item in items),
        )
        unusable = {item.sample_id: item.unusable for item in items if item.unusable}
        marks = tuple(mark_of(item.sample_id, item.contexts, item.responses) for item in items)
        return VLMRowBatch(tuple(item.key for item in items), batch, unusable, marks)

    def _weighed(self, row: VLMPair) -> VLMPair:
        if self.changed_weight is None:
            return row
        if row.chosen_weights is not None or row.rejected_weights is not None:
            raise ValueError("it has token weights of its own, which vlm.changed_weight would replace; leave one out")
        return weigh_changes(row, self.changed_weight)

    def _encoded(self, key: RowKey, row: VLMPair) -> VLMItem:
        contexts: list[Context] = []
        prompts = {}
        responses = {}
        for branch in self.branches:
            if branch.lacking(row):
                continue
            shown = _shown(row, branch)
            seen = (branch.change, repr(branch.of(row)), *shown)
            if seen not in prompts:
                prompts[seen] = len(contexts), self._prompt(key, row, branch, *shown)
                contexts.append(self._context(prompts[seen][1], row.sample_id))
            number, prompt = prompts[seen]
            text, weights = _response(row, branch.side)
            answer = self.encoder.answer(prompt, text, row.sample_id, weights)
            check_response(self.model, answer.input_ids.tolist(), row.sample_id)
            responses[branch.name] = Response(number, answer.input_ids, answer.weights)
        _refuse_equal(responses)
        return VLMItem(key, row.sample_id, tuple(contexts), responses, row.preference, row.margin)

    def _prompt(
        self, key: RowKey, row: VLMPair, branch: Branch, images: tuple[ImageBytes, ...], videos: tuple[Video, ...]
    ) -> Prompt:
        messages = without_pictures(row.prompt) if branch.change == NO_PICTURES else row.prompt
        change = branch.of(row)

        def generator(what: str, number: int) -> torch.Generator:
            return self.corruption_generator(key, row.sample_id, f"{branch.change} {what}", number)

        pictures = [_changed(decode(image), change, generator("", n)) for n, image in enumerate(images)]
        clips = [_changed_clip(clip_of(v, self.frames), change, generator("video", n)) for n, v in enumerate(videos)]
        return self.encoder.prompt(messages, pictures, row.sample_id, clips)

    def corruption_generator(self, key: RowKey, sample_id: str, change: str, number: int) -> torch.Generator:
        """What picture ``number`` of a row draws its corruption from: run's seed, sample id and epoch, nothing else.

        So policy, reference and stored reference scores see the same picture, however rows are ordered.
        """
        return torch.Generator().manual_seed(stable_hash(self.seed, sample_id, key.epoch, change, number))

    def _context(self, prompt: Prompt, name: str) -> Context:
        return self.adapter.context(
            self.model, prompt.input_ids, prompt.media, mm_token_type_ids=prompt.mm_token_type_ids, name=name
        )


def _refuse_equal(responses: Mapping[str, Response]) -> None:
    """ValueError where chosen and rejected are the same to the model, be it because both were cut."""
    chosen, rejected = responses.get(CHOSEN), responses.get(REJECTED)
    if chosen is None or rejected is None or chosen.context != rejected.context:
        return
    if torch.equal(chosen.input_ids, rejected.input_ids):
        raise ValueError(
            "chosen and rejected are the same tokens to the same pictures, so neither is preferred; take the row out, "
            "or raise vlm.max_length where both were cut"
        )


def _shown(row: VLMPair, branch: Branch) -> tuple[tuple[ImageBytes, ...], tuple[Video, ...]]:
    """Pictures and videos of a branch before they are changed."""
    if branch.change == NO_PICTURES:
        return (), ()
    side = CHOSEN if branch.side == GOLD else branch.side
    videos = row.videos_of(side)
    if branch.change is not None and branch.change in row.branch_images:
        return row.branch_images[branch.change], videos
    return row.images_of(side), videos


def _changed(picture: Image, change: Change | None, generator: torch.Generator) -> Image:
    from mmalign.corruptions import CORRUPTIONS, corrupt

    # A corruption of frames leaves the pictures beside a video as they are.
    if change is None or change[0] not in CORRUPTIONS:
        return picture
    return corrupt(picture, change[0], generator, **change[1])


def _changed_clip(clip: Clip, change: Change | None, generator: torch.Generator) -> Clip:
    from mmalign.corruptions import corrupt_video

    if change is None:
        return clip
    return replace(clip, frames=tuple(corrupt_video(clip.frames, change[0], generator, **change[1])))


def _response(row: VLMPair, side: str) -> tuple[str, TokenWeights | None]:
    if side == GOLD:
        return gold_of(row), None
    return (row.chosen, row.chosen_weights) if side == "chosen" else (row.rejected, row.rejected_weights)
