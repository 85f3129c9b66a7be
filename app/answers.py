"""Vision-language models asked the same question about the same picture: greedy answers, so nothing is drawn."""

import difflib
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from app import validation
from app.gallery import open_picture
from app.markup import text
from app.settings import PLAYGROUND_FOLDER, Model, Settings, asker_of
from app.weights import digest_of
from mmalign.training.config import ModelConfig

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MOST_PICTURES = 200
MOST_LOADED = 2
MOST_KEPT = 1024
MOST_TOKENS = 128
PLAYGROUND_PICTURES = 24


@dataclass(frozen=True)
class Answers:
    """What two models say about one picture."""

    picture: str
    question: str
    left: str
    right: str
    said_left: str
    said_right: str


class AnswerSource:
    """The vision-language models of ``settings``, asked about the pictures of a folder.

    Without ``folder`` the playground's models are asked about pictures that are drawn for them. Models are loaded when
    they are first asked; at most two stay, and the one that was asked longest ago makes room. ``ValueError`` for models
    or pictures that are not there, before that.
    """

    def __init__(self, settings: Settings, folder: Path | None, device: str | None = None) -> None:
        self.settings, self.device = settings, device or settings.device
        self.playground = any(model.base.startswith(PLAYGROUND_FOLDER) for model in settings.models)
        if folder is None and not self.playground:
            raise ValueError("these models are asked about pictures of yours: give --pictures DIR")
        self.pictures: Mapping[str, Image.Image] = _drawn() if folder is None else _of_folder(folder)
        self._models = {model.name: model for model in settings.models}
        self._lock = threading.Lock()
        self._loaded: OrderedDict[str, Any] = OrderedDict()
        self._kept: OrderedDict[tuple[str, str, str], str] = OrderedDict()
        self.title = " vs ".join(self.names) if len(self.names) == 2 else f"{len(self.names)} models"
        self.notice = settings.notice

    @property
    def names(self) -> list[str]:
        """The models, in the order of the settings."""
        return list(self._models)

    @property
    def cheap(self) -> bool:
        """Whether the models may be asked without being told to, as soon as the page opens."""
        return all(model.base.startswith(PLAYGROUND_FOLDER) for model in self.settings.models)

    def warm(self) -> None:
        """Models are loaded when they are first asked."""

    def prompts(self) -> list[str]:
        """Questions to begin with, and those of the arena."""
        if self.settings.prompts:
            return list(self.settings.prompts)
        if self.playground:
            from mmalign.playground.questions import DESCRIBE

            return [DESCRIBE[0], "how many things are there ?", "what colour is the background ?"]
        return ["Describe this image in detail.", "How many people are there?", "What is written in this image?"]

    def weights(self, model: str) -> dict[str, str | None]:
        """What tells ``model`` from others of its name, as ``mmalign.arena.Side`` calls it; nothing is loaded."""
        from mmalign.models.vlm_names import peek_vlm

        entry = self._models[validation.check_choice(model, "model", self.names)]
        of_base = digest_of(peek_vlm(ModelConfig(name=entry.base)).location)
        if entry.aligned is None:
            return {"model_hash": of_base, "adapter": None, "adapter_hash": None}
        asker = asker_of(entry)
        place = asker.adapter or Path(asker.model_of_aligned)
        run = place.parent.name if place.name == "aligned" else place.name
        return {"model_hash": of_base, "adapter": run or None, "adapter_hash": digest_of(str(place))}

    def provenance(self, model: str) -> dict[str, Any]:
        """Everything that made an answer of ``model``, beside picture and question."""
        import mmalign

        entry = self._models[model]
        how = {"decoding": "greedy", "max_new_tokens": MOST_TOKENS, "mmalign": mmalign.__version__}
        return {**self.weights(model), "dtype": self._dtype(entry), "base": entry.base, **how}

    def ask(self, left: Any, right: Any, picture: Any, question: Any) -> Answers:
        """Both answers; ``ValueError`` with every mistake at once."""
        left, right, picture, question = validation.together(
            lambda: validation.check_choice(left, "left model", self.names),
            lambda: validation.check_choice(right, "right model", self.names),
            lambda: validation.check_choice(picture, "picture", self.pictures),
            lambda: validation.check_prompt(question, "question"),
        )
        said = [self.answer(name, picture, question) for name in (left, right)]
        return Answers(picture, question, left, right, *said)

    def answer(self, model: str, picture: str, question: str) -> str:
        """What ``model`` says; what was asked before is not asked again."""
        from mmalign.evaluation.vlm_answers import greedy_answers

        key = (model, picture, question)
        with self._lock:
            if key not in self._kept:
                loaded = self._model(self._models[model])
                asked = ([self.pictures[picture]], [question])
                (said,) = greedy_answers(loaded.model, loaded.processor, *asked, max_new_tokens=MOST_TOKENS)
                self._kept[key] = said
                while len(self._kept) > MOST_KEPT:
                    self._kept.popitem(last=False)
            return self._kept[key]

    def _model(self, entry: Model) -> Any:
        """The loaded model of ``entry``."""
        from mmalign.models.vlm import load_vlm

        loaded = self._loaded.pop(entry.name, None)
        if loaded is None:
            while len(self._loaded) >= MOST_LOADED:
                self._loaded.popitem(last=False)
            asker = asker_of(entry)
            name = entry.base if asker.adapter else asker.model_of_aligned
            loaded = load_vlm(ModelConfig(name=name, dtype=self._dtype(entry)))
            loaded.model.to(self._device())
            if asker.adapter is not None:
                loaded.model.load_adapter(str(asker.adapter), is_trainable=False)
        self._loaded[entry.name] = loaded
        return loaded

    def _device(self) -> str:
        import torch

        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def _dtype(self, entry: Model) -> Any:
        return entry.dtype or ("bfloat16" if self._device().startswith("cuda") else "float32")


def marked(answer: str, other: str) -> str:
    """``answer`` as HTML, with the words marked that ``other`` does not have at that place."""
    own, theirs = re.findall(r"\S+|\s+", answer), re.findall(r"\S+|\s+", other)
    parts = []
    for kind, start, end, _, _ in difflib.SequenceMatcher(a=own, b=theirs, autojunk=False).get_opcodes():
        words = text("".join(own[start:end]))
        bare = words.strip()
        parts.append(words if kind == "equal" or not bare else words.replace(bare, f"<mark>{bare}</mark>"))
    return "".join(parts)


def _drawn() -> dict[str, Image.Image]:
    from mmalign.playground.looking import looks

    return {f"drawn {number}": look.image for number, look in enumerate(looks(PLAYGROUND_PICTURES), start=1)}


def _of_folder(folder: Path) -> dict[str, Image.Image]:
    if not folder.is_dir():
        raise ValueError(f"--pictures {folder} is not a folder")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"--pictures {folder} has no {', '.join(SUFFIXES)}")
    if len(files) > MOST_PICTURES:
        raise ValueError(f"--pictures {folder} has {len(files)} pictures; at most {MOST_PICTURES} are offered")
    return {file.name: open_picture(file) for file in files}
