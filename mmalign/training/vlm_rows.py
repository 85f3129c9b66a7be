"""Rows of vision-language models as the trainer's data workers load and collate them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from PIL.Image import Image
from torch import Tensor

from mmalign.adapters import Context, Response, VLMAdapter, VLMBatch
from mmalign.adapters.vlm_checks import check_response
from mmalign.data import RowTable, decode
from mmalign.models.vlm import VLMComponents
from mmalign.models.vlm_encode import VLMEncoder
from mmalign.training.task import RowKey
from mmalign.training.vlm_branches import NO_PICTURES, Branch
from mmalign.types import ImageBytes, ImagePart, Message, TokenWeights, VLMPair


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
    """Rows put together. ``batch`` is what the adapter scores; ``unusable``: sample id -> why it counts for nothing."""

    keys: tuple[RowKey, ...]
    batch: VLMBatch
    unusable: Mapping[str, str]

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

    Corrupted pictures are drawn from the row's key alone, so policy, reference, and any other order of rows see the
    same ones.
    """

    def __init__(
        self,
        tables: Mapping[str, RowTable[VLMPair]],
        components: VLMComponents,
        adapter: VLMAdapter,
        branches: Sequence[Branch],
        *,
        max_length: int,
    ) -> None:
        self.tables, self.model, self.adapter, self.branches = tables, components.model, adapter, branches
        self.encoder = VLMEncoder(components.processor, max_length=max_length)

    def load(self, key: RowKey) -> VLMItem:
        """The row of ``key``; one that cannot be used is named, with the reason, and counts for nothing."""
        row = self.tables[key.split][key.index]
        try:
            return self._encoded(key, row)
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
        return VLMRowBatch(tuple(item.key for item in items), batch, unusable)

    def _encoded(self, key: RowKey, row: VLMPair) -> VLMItem:
        contexts: list[Context] = []
        prompts = {}
        responses = {}
        for branch in self.branches:
            images = _pictures(row, branch)
            if images is None:
                continue
            seen = (branch.change, images)
            if seen not in prompts:
                messages = _without_pictures(row.prompt) if branch.change == NO_PICTURES else row.prompt
                pictures = [_changed(decode(image), branch, key, n) for n, image in enumerate(images)]
                prompt = self.encoder.prompt(messages, pictures, row.sample_id)
                context = self.adapter.context(
                    self.model,
                    prompt.input_ids,
                    prompt.media,
                    mm_token_type_ids=prompt.mm_token_type_ids,
                    name=row.sample_id,
                )
                prompts[seen] = len(contexts), prompt
                contexts.append(context)
            number, prompt = prompts[seen]
            text, weights = _response(row, branch.side)
            answer = self.encoder.answer(prompt, text, row.sample_id, weights)
            check_response(self.model, answer.input_ids.tolist(), row.sample_id)
            responses[branch.name] = Response(number, answer.input_ids, answer.weights)
        return VLMItem(key, row.sample_id, tuple(contexts), responses, row.preference, row.margin)


def _pictures(row: VLMPair, branch: Branch) -> tuple[ImageBytes, ...] | None:
    """The pictures of a branch before they are changed; None where the row does not have it."""
    if branch.change == NO_PICTURES:
        return ()
    if branch.change is not None and branch.change in row.branch_images:
        return row.branch_images[branch.change]
    if branch.change is not None and (branch.corruption is None or not row.images_of(branch.side)):
        return None  # nothing to retrieve, and nothing to corrupt
    return row.images_of(branch.side)


def _changed(picture: Image, branch: Branch, key: RowKey, number: int) -> Image:
    if branch.corruption is None:
        return picture
    from mmalign.corruptions import corrupt

    # RowKey tells streams apart by their first eight bytes.
    stream = hashlib.sha256(f"{branch.change} {number}".encode()).hexdigest()[:8]
    return corrupt(picture, branch.corruption, key.generator(stream), **(branch.parameters or {}))


def _without_pictures(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(
        replace(message, content=tuple(part for part in message.content if not isinstance(part, ImagePart)))
        for message in messages
    )


def _response(row: VLMPair, side: str) -> tuple[str, TokenWeights | None]:
    return (row.chosen, row.chosen_weights) if side == "chosen" else (row.rejected, row.rejected_weights)
