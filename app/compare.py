"""What the Compare tab does: the same prompt and seeds from two models, scores, and ways to look at them."""

import base64
import io
import json
import re
import secrets
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from app import validation
from app.scoring import Scored, Scorers
from app.sources import Picture, Request, Source
from mmalign.cli.manifest import MANIFEST

MOST_KEPT = 64
DIFFERENCE_GAIN = 4.0


@dataclass(frozen=True)
class Comparison:
    """Pictures of two models for the same seeds, in the same order, and scores of left then right pictures [2 n]."""

    left: tuple[Picture, ...]
    right: tuple[Picture, ...]
    scored: tuple[Scored, ...] = ()

    def scores(self, index: int) -> list[tuple[Scored, float, float]]:
        """(reward, score left, score right) of seed ``index``, of the rewards that can score."""
        count = len(self.left)
        able = [scored for scored in self.scored if not scored.problem]
        return [(scored, scored.scores[index], scored.scores[count + index]) for scored in able]


@dataclass(frozen=True)
class Form:
    """What the visitor asked for, checked."""

    left: str
    right: str
    request: Request
    rewards: tuple[str, ...]


def read_form(
    source: Source,
    scorers: Scorers,
    left: Any,
    right: Any,
    prompt: Any,
    negative: Any,
    seed: Any,
    count: Any,
    steps: Any,
    guidance: Any,
    lora_scale: Any,
    rewards: Any,
) -> Form:
    """The checked form; ``ValueError`` with every mistake at once. A gallery takes its own prompts and seeds only."""
    v = validation
    left, right, prompt, negative, seed, count, steps, guidance, lora_scale, rewards = v.together(
        partial(v.check_choice, left, "left model", source.names),
        partial(v.check_choice, right, "right model", source.names),
        partial(v.check_prompt, prompt),
        partial(v.check_prompt, negative if negative is not None else "", "negative prompt", empty=True),
        partial(v.check_whole, seed, "seed", 0, v.HIGHEST_SEED),
        partial(v.check_whole, count, "number of seeds", 1, v.MOST_SEEDS),
        partial(v.check_whole, steps, "steps", 1, v.MOST_STEPS),
        partial(v.check_real, guidance, "guidance", 0, v.HIGHEST_GUIDANCE),
        partial(v.check_real, lora_scale, "LoRA scale", *v.LORA_SCALES),
        partial(v.check_choices, rewards, "rewards", scorers.names),
    )
    seeds = _seeds(source, prompt, seed, count)
    request = Request(prompt, seeds, negative, steps, guidance, lora_scale)
    if negative and not any(source.effective(name, request).negative_prompt for name in (left, right)):
        raise ValueError(f"a negative prompt has no effect at guidance {guidance:g}; raise that above 1 or clear it")
    return Form(left, right, request, tuple(rewards))


def _seeds(source: Source, prompt: str, seed: int, count: int) -> tuple[int, ...]:
    if source.live:
        return tuple((seed + offset) % (validation.HIGHEST_SEED + 1) for offset in range(count))
    validation.check_choice(prompt, "prompt", source.prompts())
    there = source.seeds(prompt)
    first = there.index(validation.check_choice(seed, "seed", there))
    return tuple((there[first:] + there[:first])[:count])


def compare(
    source: Source,
    scorers: Scorers,
    form: Form,
    progress: Callable[[float, str], None],
    unless_stopped: Callable[[], None],
) -> Comparison:
    """Sample both sides and score them; ``unless_stopped`` is asked before each step and ends it by raising."""
    sides = []
    for number, name in enumerate((form.left, form.right)):

        def told(done: int, steps: int, number: int = number, name: str = name) -> None:
            unless_stopped()
            progress((number + done / steps) / 2, f"{name}: step {done} of {steps}")

        unless_stopped()
        sides.append(tuple(source.sample(name, form.request, told)))
    pictures = [*sides[0], *sides[1]]
    scored = []
    for reward in form.rewards:
        unless_stopped()
        progress(1.0, f"scoring with {reward}")
        scored.append(scorers.score(reward, pictures))
    return Comparison(sides[0], sides[1], tuple(scored))


class Kept:
    """The last comparisons, by a random key: switching the view or the seed samples nothing again."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self.most, self._lock = most, threading.Lock()
        self._kept: OrderedDict[str, Comparison] = OrderedDict()

    def put(self, comparison: Comparison) -> str:
        """The key of ``comparison``."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[key] = comparison
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        return key

    def get(self, key: Any) -> Comparison:
        """The comparison; ``ValueError`` once it was forgotten."""
        with self._lock:
            found = self._kept.get(validation.check_token(key, "comparison"))
        if found is None:
            raise ValueError("these pictures are no longer kept; press Generate again")
        return found


def difference(left: Image.Image, right: Image.Image, gain: float = DIFFERENCE_GAIN) -> Image.Image:
    """min(255, gain * |left - right|) per channel; ``ValueError`` for pictures of two sizes."""
    if left.size != right.size:
        raise ValueError(
            f"pictures of {left.size} and {right.size} pixels have no difference; look at them side by side"
        )
    gap = np.abs(np.asarray(left.convert("RGB"), np.float32) - np.asarray(right.convert("RGB"), np.float32))
    return Image.fromarray(np.minimum(gap * gain, 255).astype(np.uint8))


def mean_difference(left: Image.Image, right: Image.Image) -> float:
    """Mean |left - right| in 8-bit levels."""
    gap = np.abs(np.asarray(left.convert("RGB"), np.float32) - np.asarray(right.convert("RGB"), np.float32))
    return float(gap.mean())


def data_uri(picture: Picture) -> str:
    """The lossless picture inside of a page."""
    return "data:image/png;base64," + base64.b64encode(picture.png).decode()


def archive(sides: Sequence[Sequence[Picture]]) -> bytes:
    """A zip laid out as ``mmalign generate`` writes it; every PNG holds its provenance as JSON, the manifest too."""
    buffer, lines = io.BytesIO(), []
    folders = _folders([side[0].model for side in sides])
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as zipped:
        for folder, side in zip(folders, sides, strict=True):
            for picture in side:
                file = f"{folder}/0000_seed{picture.seed}.png"
                zipped.writestr(file, picture.signed_png())
                row = {"file": file, "model": picture.model, "prompt": picture.prompt, "seed": picture.seed}
                lines.append(json.dumps({**row, **picture.provenance}, ensure_ascii=False, default=str))
        zipped.writestr(MANIFEST, "\n".join(lines) + "\n")
    return buffer.getvalue()


def _folders(names: Sequence[str]) -> list[str]:
    """A folder name per model: plain characters, no two alike."""
    plain = [re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.") or "model" for name in names]
    return [f"{number}-{name}" if plain.count(name) > 1 else name for number, name in enumerate(plain, start=1)]
