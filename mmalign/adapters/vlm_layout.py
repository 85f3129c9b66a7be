"""Prompts and responses in rows: responses to one prompt behind each other, or each after a prompt of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmalign.adapters.vlm_batch import Context, Response

PADDING = -1


@dataclass(frozen=True)
class Layout:
    """Rows for one forward. Everything is known without asking the device.

    ``input_ids`` [rows, length]; ``positions`` [axes, rows, length]; ``group`` and ``part`` [rows, length]: which
    prompt (from 0 in each row, -1 padding) and which of its responses (from 1, 0 is the prompt) a token belongs to.
    ``hidden`` [tokens]: where the hidden state stands, in the flattened rows, that predicts each of ``targets``;
    ``lengths``: tokens of each response, in their order. ``contexts``: contexts in the order of the placeholders;
    ``row_contexts``: how many of them each row holds; ``expected``: per context in that order, the row of the data and
    its placeholders. ``packed``: several responses share a prompt, so attention needs a mask of its own.
    """

    input_ids: Int[Tensor, "rows length"]
    positions: Int[Tensor, "axes rows length"]
    group: Int[Tensor, "rows length"]
    part: Int[Tensor, "rows length"]
    hidden: Int[Tensor, " tokens"]
    targets: Int[Tensor, " tokens"]
    lengths: tuple[int, ...]
    contexts: tuple[int, ...]
    row_contexts: tuple[int, ...]
    expected: tuple[tuple[str, Mapping[str, int]], ...]
    packed: bool

    def row(self, index: int) -> "Layout":
        """One row alone; its ``lengths`` and targets stay those of the whole, so only hidden states are of use."""
        first = sum(self.row_contexts[:index])
        pick = slice(index, index + 1)
        return Layout(
            self.input_ids[pick],
            self.positions[:, pick],
            self.group[pick],
            self.part[pick],
            self.hidden,
            self.targets,
            self.lengths,
            self.contexts[first : first + self.row_contexts[index]],
            (self.row_contexts[index],),
            self.expected[first : first + self.row_contexts[index]],
            self.packed,
        )

    def visible(self) -> Bool[Tensor, "rows one length length"]:
        """keep(q, k) = k <= q, of one prompt, and k in the prompt or in the response of q."""
        length = self.group.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.group.device).tril()
        same = self.group[:, :, None] == self.group[:, None, :]
        shared = (self.part[:, None, :] == 0) | (self.part[:, :, None] == self.part[:, None, :])
        return (causal & same & shared)[:, None]


@dataclass(frozen=True)
class _Group:
    """A prompt and the responses (numbers in the order asked for) that come after it."""

    context: int
    responses: tuple[int, ...]
    length: int


def lay_out(
    contexts: Sequence[Context],
    responses: Sequence[Response],
    names: Sequence[str],
    *,
    pack: bool,
    row_tokens: int | None = None,
    multiple: int = 1,
) -> Layout:
    """Rows that hold every one of ``responses``, in their order. ``names``: what errors call each context.

    ``pack``: all responses to one context follow it in one row. ``row_tokens``: several such groups may share a row of
    up to so many tokens. ``multiple``: lengths are rounded up to it.
    """
    groups = _groups(contexts, responses, pack=pack)
    rows = _rows(groups, row_tokens if pack else None)
    length = max(sum(group.length for group in row) for row in rows)
    length = -(-length // multiple) * multiple
    device, axes = responses[0].input_ids.device, contexts[0].positions.shape[0]
    ids = torch.zeros(len(rows), length, dtype=torch.long, device=device)
    positions = torch.zeros(axes, len(rows), length, dtype=torch.long, device=device)
    marks = torch.zeros(2, len(rows), length, dtype=torch.long)
    marks[0] = PADDING
    hidden: dict[int, Tensor] = {}
    order: list[int] = []
    for number, row in enumerate(rows):
        at = 0
        for place, group in enumerate(row):
            context = contexts[group.context]
            order.append(group.context)
            end = at + context.length
            marks[0, number, at : at + group.length] = place
            ids[number, at:end] = context.input_ids
            positions[:, number, at:end] = context.positions[:, :-1]
            last, at = number * length + end - 1, end
            for part, index in enumerate(group.responses, start=1):
                tokens = responses[index].input_ids
                count, end = tokens.shape[0], at + tokens.shape[0]
                ids[number, at:end] = tokens
                steps = torch.arange(count, device=device)
                positions[:, number, at:end] = context.positions[:, -1:] + steps
                marks[1, number, at:end] = part
                # The last token of the prompt predicts the first of every response.
                first = number * length + at
                hidden[index] = torch.tensor([last, *range(first, first + count - 1)])
                at = end
    return Layout(
        ids,
        positions,
        *marks.to(device),
        hidden=torch.cat([hidden[index] for index in range(len(responses))]).to(device),
        targets=torch.cat([response.input_ids for response in responses]),
        lengths=tuple(response.input_ids.shape[0] for response in responses),
        contexts=tuple(order),
        row_contexts=tuple(len(row) for row in rows),
        expected=tuple((names[context], contexts[context].placeholders) for context in order),
        packed=any(len(group.responses) > 1 for group in groups) or any(len(row) > 1 for row in rows),
    )


def _groups(contexts: Sequence[Context], responses: Sequence[Response], *, pack: bool) -> list[_Group]:
    members: Mapping[int, list[int]] = {}
    jobs: list[tuple[int, tuple[int, ...]]] = [(one.context, (index,)) for index, one in enumerate(responses)]
    if pack:
        members = {}
        for index, one in enumerate(responses):
            members.setdefault(one.context, []).append(index)
        jobs = [(context, tuple(indices)) for context, indices in members.items()]
    return [
        _Group(context, indices, contexts[context].length + sum(responses[i].input_ids.shape[0] for i in indices))
        for context, indices in jobs
    ]


def _rows(groups: Sequence[_Group], row_tokens: int | None) -> list[list[_Group]]:
    """Each group in a row of its own, or in the first row where it still fits."""
    rows: list[list[_Group]] = []
    for group in groups:
        fitting = (row for row in rows if row_tokens and sum(g.length for g in row) + group.length <= row_tokens)
        row = next(fitting, None)
        if row is None:
            rows.append([group])
        else:
            row.append(group)
    return rows
