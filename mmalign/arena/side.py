"""One picture or one answer of a battle, with everything that made it."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mmalign.arena import checks


@dataclass(frozen=True)
class Side:
    """One picture of a battle, or one answer to a question about a picture, and everything that made it.

    With ``answer`` (of a vision-language model) ``prompt`` is the question and ``file`` the picture it is about.
    ``model`` is the name shown after the vote, ``adapter`` that of a LoRA (None: none); the two hashes tell weights of
    the same name apart. ``file`` is where the picture lies, relative to the store's folder or absolute, and
    ``image_sha256`` the digest of its bytes. None everywhere else means "not known".
    """

    model: str
    prompt: str
    file: str
    image_sha256: str
    model_hash: str | None = None
    adapter: str | None = None
    adapter_hash: str | None = None
    lora_scale: float | None = None
    scheduler: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    dtype: str | None = None
    negative_prompt: str | None = None
    answer: str | None = None
    extras: Mapping[str, str | float | bool | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.check_text("model", self.model, longest=checks.LONGEST_NAME)
        checks.check_text("prompt", self.prompt, longest=checks.LONGEST_PROMPT, empty=True)
        checks.check_text("file", self.file, longest=4 * checks.LONGEST_NAME)
        checks.check_sha256("image_sha256", self.image_sha256)
        for name in ("model_hash", "adapter", "adapter_hash", "scheduler", "dtype"):
            if getattr(self, name) is not None:
                checks.check_text(name, getattr(self, name), longest=checks.LONGEST_NAME)
        for name in ("negative_prompt", "answer"):
            if getattr(self, name) is not None:
                checks.check_text(name, getattr(self, name), longest=checks.LONGEST_PROMPT, empty=True)
        for name in ("lora_scale", "guidance"):
            if getattr(self, name) is not None:
                checks.check_number(name, getattr(self, name))
        if self.seed is not None:
            checks.check_integer("seed", self.seed, low=0)
        if self.steps is not None:
            checks.check_integer("steps", self.steps, low=1, high=100_000)
        checks.check_extras("extras", self.extras)

    @classmethod
    def of_file(cls, file: str | Path, *, model: str, prompt: str, **provenance: Any) -> "Side":
        """A side whose digest is taken from the bytes of ``file``."""
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        return cls(model=model, prompt=prompt, file=str(file), image_sha256=digest, **provenance)

    @property
    def shows(self) -> str:
        """A digest of what a voter sees: the picture's, or SHA-256 of "picture:answer" where there is an answer."""
        if self.answer is None:
            return self.image_sha256
        return hashlib.sha256(f"{self.image_sha256}:{self.answer}".encode()).hexdigest()

    @property
    def player(self) -> str:
        """The name on the leaderboard: model and adapter with the first digits of their hashes, and the LoRA's scale.

        Weights that differ are two players even under one name. Steps, guidance and scheduler are not part of it.
        """
        name = self.model if self.model_hash is None else f"{self.model}#{self.model_hash[:8]}"
        if self.adapter is None and self.adapter_hash is None:
            return name
        adapter = self.adapter or "adapter"
        name += f"+{adapter}" if self.adapter_hash is None else f"+{adapter}#{self.adapter_hash[:8]}"
        return name if self.lora_scale in (None, 1) else f"{name}*{self.lora_scale:g}"

    def as_json(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Side":
        """The side that :meth:`as_json` gave."""
        checks.only_known("a side", data, {entry.name: None for entry in fields(cls)})
        return cls(**data)
