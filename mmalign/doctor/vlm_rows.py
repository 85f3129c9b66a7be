"""Rows of a vision-language run as tokens: what is cut, what cannot be used, and what needs no look at the picture."""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

import numpy as np

from mmalign.adapters import Response
from mmalign.data.table import count, named
from mmalign.doctor.findings import Finding, Level
from mmalign.training.config import Config
from mmalign.training.task import TRAIN, RowKey
from mmalign.training.vlm_rows import VLMItem, VLMRows
from mmalign.types import CHOSEN, REJECTED

LOOKED_AT = 64  # rows that are decoded and tokenised, spread evenly
ONE_SIDED = 0.75  # of the rows: the share from which the longer answer, or the word yes, tells the better one
OFTEN = 0.3
ALIKE = 0.8


def some_items(rows: VLMRows, number: int = LOOKED_AT) -> list[VLMItem]:
    """Up to ``number`` rows of the training split, spread evenly, as they would be trained on."""
    size = len(rows.tables[TRAIN])
    chosen = np.linspace(0, size - 1, min(number, size)).round().astype(int).tolist()
    return [rows.load(RowKey(TRAIN, index, 1 + index)) for index in chosen]


def token_findings(config: Config, rows: VLMRows, items: Sequence[VLMItem]) -> Iterator[Finding]:
    """Lengths, pictures, cut responses, end and begin tokens, and rows that cannot be used."""
    assert config.vlm is not None
    bad = [(item.sample_id, item.unusable) for item in items if item.unusable]
    if bad:
        text = f"{len(bad)} of {count(len(items), 'row')} looked at cannot be used: {named(tuple(bad))}"
        yield Finding(Level.warning, "rows", text)
    good = [item for item in items if not item.unusable]
    if not good:
        yield Finding(Level.error, "rows", "none of the rows looked at can be used")
        return
    contexts = [context for item in good for context in item.contexts]
    lengths = np.array([context.length for context in contexts])
    pictures = np.array([sum(context.placeholders.values()) for context in contexts])
    text = (
        f"{np.median(lengths):g} tokens in the middle, {lengths.max()} at most; "
        f"{np.median(pictures):g} and {pictures.max()} of them stand for pictures"
    )
    yield Finding(Level.note, "prompts", text)
    if not pictures.any():
        yield Finding(Level.warning, "pictures", "no row looked at has a picture: nothing is learned about seeing")
    yield _cut(config.vlm.max_length, rows.encoder.tokenizer.eos_token_id, good)
    begin = rows.encoder.tokenizer.bos_token_id
    doubled = [item.sample_id for item in good for c in item.contexts if (c.input_ids == begin).sum() > 1]
    if doubled:
        text = f"{len(doubled)} prompts hold the begin token more than once, such as that of {doubled[0]}"
        yield Finding(Level.warning, "prompts", text)


def _cut(max_length: int, end: int, items: Sequence[VLMItem]) -> Finding:
    responses = [(item, response) for item in items for response in item.responses.values()]
    cut = [(item, response) for item, response in responses if int(response.input_ids[-1]) != end]
    if not cut:
        longest = max(item.contexts[r.context].length + len(r.input_ids) for item, r in responses)
        text = f"every response ends with the end token; prompt and response have at most {longest} of {max_length}"
        return Finding(Level.ok, "responses", f"{text} tokens: nothing is cut")
    share = len(cut) / len(responses)
    text = (
        f"{share:.0%} of the responses are cut at vlm.max_length={max_length}, such as that of {cut[0][0].sample_id}: "
        "what is cut is not learned, nor where the response ends"
    )
    return Finding(Level.warning, "responses", text, f"vlm.max_length={2 * max_length}")


def bias_findings(config: Config, rows: VLMRows, items: Sequence[VLMItem]) -> Iterator[Finding]:
    """Whether length, a first word, or few tokens tell the better response without a look at the picture."""
    end = rows.encoder.tokenizer.eos_token_id
    sides = [(item.responses.get(CHOSEN), item.responses.get(REJECTED)) for item in items]
    pairs = [(_plain(one, end), _plain(two, end)) for one, two in sides if one is not None and two is not None]
    if not pairs:
        return
    yield _lengths(config, pairs)
    yield _shared(pairs)
    first = [tuple(_first_word(rows, side) for side in pair) for pair in pairs]
    for word in ("yes", "no"):
        shares = [sum(pair[side] == word for pair in first) / len(first) for side in (0, 1)]
        if abs(shares[0] - shares[1]) >= OFTEN:
            more = "more" if shares[0] > shares[1] else "less"
            text = (
                f'"{word}" begins {shares[0]:.0%} of the chosen responses and {shares[1]:.0%} of the rejected ones: '
                f"the model can learn to say it {more} often, whatever the picture shows"
            )
            yield Finding(Level.warning, "labels", text)


def _lengths(config: Config, pairs: Sequence[tuple[list[int], list[int]]]) -> Finding:
    chosen, rejected = (np.array([len(pair[side]) for pair in pairs]) for side in (0, 1))
    longer = float((chosen > rejected).mean() + 0.5 * (chosen == rejected).mean())
    text = (
        f"{chosen.mean():.1f} tokens chosen, {rejected.mean():.1f} rejected on average; the chosen one is longer in "
        f"{longer:.0%} of the pairs (equal ones count half)"
    )
    if 1 - ONE_SIDED < longer < ONE_SIDED:
        return Finding(Level.ok, "lengths", text)
    than = "longer" if longer >= ONE_SIDED else "shorter"
    losses = [index for index, term in enumerate(config.objective) if term["loss"] == "dpo" and "score" not in term]
    change = f"objective.{losses[0]}.score=mean" if losses else None
    return Finding(Level.warning, "lengths", f"{text}: sums of log-probs can learn to answer {than}", change)


def _shared(pairs: Sequence[tuple[list[int], list[int]]]) -> Finding:
    shares = [_common(*pair) for pair in pairs]
    first = [_common_start(*pair) / max(1, min(map(len, pair))) for pair in pairs]
    text = (
        f"{np.mean(shares):.0%} of the tokens are in both responses, in the same order; they begin alike for "
        f"{np.mean(first):.0%} of the shorter one"
    )
    level = Level.note if np.mean(shares) >= ALIKE else Level.ok
    told = ": what is told apart is few tokens, and token weights would make it count" if level is Level.note else ""
    return Finding(level, "shared tokens", text + told)


def _plain(response: Response, end: int) -> list[int]:
    return [token for token in response.input_ids.tolist() if token != end]


def _common(one: list[int], two: list[int]) -> float:
    matched = SequenceMatcher(None, one, two, autojunk=False).get_matching_blocks()
    return 2 * sum(block.size for block in matched) / max(1, len(one) + len(two))


def _common_start(one: list[int], two: list[int]) -> int:
    return next((place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def _first_word(rows: VLMRows, tokens: list[int]) -> str:
    words = rows.encoder.tokenizer.decode(tokens[:8]).split()
    return words[0].strip(".,;:!?\"'").lower() if words else ""
