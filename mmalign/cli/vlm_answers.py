"""Answers of a base and an aligned vision-language model to a benchmark's questions, for ``mmalign evaluate vlm``."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.cli.sampling import Dtype, progress_bars
from mmalign.cli.terminal import hush_progress_bars

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.evaluation.vlm.records import Question

ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Asker:
    """Which models are asked, and how. ``aligned``: a LoRA for ``base`` (a PEFT folder), or a model of its own: a
    folder, a run's output folder, a hub id."""

    base: str
    aligned: str
    images: Path
    max_new_tokens: int
    batch_size: int
    dtype: Dtype
    device: str | None = None

    def check(self) -> None:
        """ValueError for models that do not exist, before any weight is loaded."""
        from mmalign.models.vlm_names import peek_vlm

        peek_vlm(_config(self.base, self.dtype))
        if self.adapter is None:
            peek_vlm(_config(self.model_of_aligned, self.dtype))

    @property
    def adapter(self) -> Path | None:
        """The folder with the LoRA; None where ``aligned`` is a model of its own."""
        return next((folder for folder in self._folders if (folder / ADAPTER).is_file()), None)

    @property
    def model_of_aligned(self) -> str:
        """The name to load where there is no LoRA."""
        return str(next((folder for folder in self._folders if (folder / "config.json").is_file()), self.aligned))

    @property
    def _folders(self) -> tuple[Path, Path]:
        return Path(self.aligned), Path(self.aligned) / "aligned"

    def answer(self, questions: Sequence["Question"], out: Path) -> tuple[list[str], list[str]]:
        """Answers of both models, in the order of the questions, kept in ``out/answers`` as they come."""
        import torch

        from mmalign.evaluation.vlm.answering import answer_questions
        from mmalign.models.vlm import load_vlm

        hush_progress_bars()
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        answers, loaded = {}, None
        with progress_bars() as bars:
            for side in ("base", "aligned"):
                bar = bars.add_task(f"asking {side}", total=len(questions))
                file = self._file(side, out)
                if file.missing(questions):
                    if side == "aligned" and self.adapter is None:
                        loaded = None  # free the base before another model is loaded
                    if loaded is None:
                        name = self.base if side == "base" or self.adapter else self.model_of_aligned
                        loaded = load_vlm(_config(name, self.dtype))
                        loaded.model.to(device)
                    if side == "aligned" and self.adapter is not None:
                        loaded.model.load_adapter(str(self.adapter), is_trainable=False)
                answers[side] = answer_questions(
                    questions, self.images, file, _ask(loaded, self.max_new_tokens), batch_size=self.batch_size,
                    progress=lambda done, bar=bar: bars.advance(bar, done),
                )  # fmt: skip
        return answers["base"], answers["aligned"]

    def _file(self, side: str, out: Path) -> Any:
        from mmalign.evaluation.vlm.answering import AnswerFile

        name = self.base if side == "base" or self.adapter else self.model_of_aligned
        settings = {
            "model": name,
            "weights": _state(Path(name)),
            "max_new_tokens": self.max_new_tokens,
            "dtype": self.dtype.value,
            "decoding": "greedy",
        }
        if side == "aligned" and self.adapter is not None:
            settings |= {"adapter": str(self.adapter), "adapter_sha256": _digest(self.adapter)}
        return AnswerFile(out / "answers" / f"{side}.jsonl", settings)


def _ask(loaded: Any, max_new_tokens: int) -> Callable[[Sequence["Image"], Sequence[str]], list[str]]:
    def ask(pictures: Sequence["Image"], texts: Sequence[str]) -> list[str]:
        from mmalign.evaluation.vlm_answers import greedy_answers

        return greedy_answers(
            loaded.model, loaded.processor, pictures, texts, max_new_tokens=max_new_tokens, batch_size=len(texts)
        )

    return ask


def _config(name: str, dtype: Dtype) -> Any:
    from mmalign.training.config import ModelConfig

    return ModelConfig(name=name, dtype=dtype.value)


def _state(folder: Path) -> list[str]:
    """Files of weights with their sizes and times, of a model in a folder: answers of weights that were written anew
    since must not go on from those of the old ones."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]


def _digest(adapter: Path) -> str:
    found = hashlib.sha256()
    for file in sorted(adapter.glob("*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()
