"""What meets in the arena: pictures of one prompt and seed, or answers to one question about one picture."""

import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Protocol

from app import validation
from app.answers import AnswerSource
from app.sources import Picture, Request, Source, bare_png
from mmalign.arena import Side
from mmalign.arena.battle import Kind

Form = Literal["pair", "ranking"]
_PROVENANCE = {entry.name for entry in fields(Side)} - {"model", "prompt", "file", "image_sha256", "seed", "extras"}
_DRAW = random.SystemRandom()


class Sides(Protocol):
    """Makes the sides of battles. ``attempts``: how often it is tried until they differ."""

    kind: Kind
    forms: tuple[Form, ...]
    attempts: int

    def player(self, model: str) -> str:
        """The name of ``model`` on the board, which tells its weights from others under the same name."""
        ...

    def of(self, models: Sequence[str]) -> list[Side]:
        """A side for each of ``models`` on one prompt, drawn uniformly; one that comes twice does not show the same."""
        ...


class PictureSides:
    """Pictures of ``source``: all of a battle share prompt and seed, and a model that comes again has another seed.

    ``sampled`` gives steps, guidance and LoRA scale. Pictures lie under ``folder`` by their digest.
    """

    kind: Kind = "pictures"
    forms: tuple[Form, ...] = ("pair", "ranking")
    attempts = 8

    def __init__(self, source: Source, folder: Path, sampled: Request) -> None:
        self.source, self.folder, self.sampled = source, folder, sampled

    def player(self, model: str) -> str:
        """See :class:`Sides`."""
        return Side(model, "", "none", "0" * 64, **self.source.weights(model, self.sampled)).player

    def of(self, models: Sequence[str]) -> list[Side]:
        """See :class:`Sides`."""
        rounds = max(models.count(model) for model in models)
        prompts = [prompt for prompt in self.source.prompts() if self._enough_seeds(prompt, rounds)]
        if not prompts:
            raise ValueError(f"no prompt of the gallery has {rounds} seeds; generate more, or compare pairs")
        prompt = _DRAW.choice(prompts)
        if self.source.live:
            seeds = [_DRAW.randrange(validation.HIGHEST_SEED) for _ in range(rounds)]
        else:
            seeds = _DRAW.sample(self.source.seeds(prompt), rounds)
        left = {model: iter(seeds) for model in models}
        return [self._side(model, next(left[model]), prompt) for model in models]

    def _enough_seeds(self, prompt: str, rounds: int) -> bool:
        return self.source.live or len(self.source.seeds(prompt)) >= rounds

    def _side(self, model: str, seed: int, prompt: str) -> Side:
        wanted = self.sampled
        request = Request(prompt, (seed,), "", wanted.steps, wanted.guidance, wanted.lora_scale)
        picture = self.source.sample(model, request)[0]
        file = kept(self.folder, picture.sha256, lambda: picture.png)
        return side_of(model, prompt, file, picture.sha256, picture.provenance, seed=seed)


class AnswerSides:
    """Answers of ``source``: both of a battle are to the same question about the same picture."""

    kind: Kind = "answers"
    forms: tuple[Form, ...] = ("pair",)
    attempts = 32

    def __init__(self, source: AnswerSource, folder: Path) -> None:
        self.source, self.folder = source, folder
        self._digests = {name: Picture(image, "", "", 0).sha256 for name, image in source.pictures.items()}

    def player(self, model: str) -> str:
        """See :class:`Sides`."""
        return Side(model, "", "none", "0" * 64, **self.source.weights(model)).player

    def of(self, models: Sequence[str]) -> list[Side]:
        """See :class:`Sides`."""
        picture, question = _DRAW.choice(list(self.source.pictures)), _DRAW.choice(self.source.prompts())
        digest = self._digests[picture]
        file = kept(self.folder, digest, lambda: bare_png(self.source.pictures[picture]))
        return [
            side_of(
                *(model, question, file, digest, self.source.provenance(model)),
                answer=self.source.answer(model, picture, question),
            )
            for model in models
        ]


def sides_of(source: Source | AnswerSource, folder: Path, sampled: Request | None) -> Sides:
    """What meets in the arena of ``source``."""
    if isinstance(source, AnswerSource):
        return AnswerSides(source, folder)
    return PictureSides(source, folder, sampled or Request("", (0,)))


def kept(folder: Path, digest: str, png: Callable[[], bytes]) -> Path:
    """The file of that digest in ``folder``, written whole where it is not there yet."""
    file = folder / f"{digest}.png"
    if not file.is_file():
        unfinished = file.with_name(f"{digest}.{secrets.token_hex(4)}.unfinished")
        unfinished.write_bytes(png())
        unfinished.replace(file)
    return file


def side_of(model: str, prompt: str, file: Path, digest: str, about: Mapping[str, Any], **more: Any) -> Side:
    """A side with ``about`` in its own fields where there are such, and in its extras else."""
    known = {name: value for name, value in about.items() if name in _PROVENANCE}
    rest = {name: value for name, value in about.items() if name not in _PROVENANCE}
    plain = {name: value for name, value in rest.items() if value is None or isinstance(value, str | int | float)}
    return Side(model, prompt, str(file), digest, extras=plain, **known, **more)
