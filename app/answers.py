"""Two vision-language models asked the same question about the same picture: greedy answers, so nothing is drawn."""

import difflib
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from app import validation
from app.gallery import open_picture
from app.markup import text
from mmalign.cli.sampling import Dtype
from mmalign.cli.vlm_answers import Asker
from mmalign.training.config import ModelConfig

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MOST_KEPT = 256
MOST_TOKENS = 128
PLAYGROUND_PICTURES = 12
SIDES = ("base", "aligned")


@dataclass(frozen=True)
class Answers:
    """What both models say about one picture."""

    picture: str
    question: str
    base: str
    aligned: str


def is_vlm(base: str) -> bool:
    """Whether ``base`` names a vision-language model of a known family; its configuration is read, no weight."""
    from mmalign.models.vlm_names import peek_vlm

    try:
        peek_vlm(ModelConfig(name=base))
    except ValueError:
        return False
    return True


class Answering:
    """``base`` and what a run made of it (a LoRA or a whole model), asked about the pictures of a folder.

    Without ``folder`` the playground's models are asked about pictures that are drawn for them. Both models are loaded
    on the first question and then kept. ``ValueError`` for models or pictures that are not there, before that.
    """

    def __init__(self, base: str, aligned: Path | None, folder: Path | None, device: str | None = None) -> None:
        if aligned is None:
            raise ValueError(f"--base {base} alone has nothing to be compared with; give --aligned RUN_DIR")
        self.playground = base.startswith("playground/")
        if folder is None and not self.playground:
            raise ValueError(f"--base {base} is asked about pictures of yours: give --pictures DIR")
        self.base, self.device, self.name = base, device, Path(aligned).resolve().name
        self._asker = Asker(base, str(aligned), Path(), MOST_TOKENS, 1, Dtype.float32, device)
        self._asker.check()
        self.pictures = _drawn() if folder is None else _of_folder(folder)
        self._lock = threading.Lock()
        self._loaded: dict[str, Any] = {}
        self._kept: OrderedDict[tuple[str, str], Answers] = OrderedDict()

    def questions(self) -> list[str]:
        """Questions to begin with."""
        if self.playground:
            from mmalign.playground.questions import DESCRIBE

            return [DESCRIBE[0], "how many things are there ?", "what colour is the background ?"]
        return ["Describe this image in detail.", "How many people are there?", "What is written in this image?"]

    def ask(self, picture: Any, question: Any) -> Answers:
        """Both answers; ``ValueError`` with every mistake at once. What was asked a moment ago is not asked again."""
        picture, question = validation.together(
            lambda: validation.check_choice(picture, "picture", self.pictures),
            lambda: validation.check_prompt(question, "question"),
        )
        with self._lock:
            key = (picture, question)
            if key not in self._kept:
                said = [self._say(side, self.pictures[picture], question) for side in SIDES]
                self._kept[key] = Answers(picture, question, *said)
                while len(self._kept) > MOST_KEPT:
                    self._kept.popitem(last=False)
            return self._kept[key]

    def _say(self, side: str, image: Image.Image, question: str) -> str:
        from mmalign.evaluation.vlm_answers import greedy_answers

        if side not in self._loaded:
            self._loaded[side] = self._load(side)
        loaded = self._loaded[side]
        return greedy_answers(loaded.model, loaded.processor, [image], [question], max_new_tokens=MOST_TOKENS)[0]

    def _load(self, side: str) -> Any:
        import torch

        from mmalign.models.vlm import load_vlm

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
        adapter = self._asker.adapter
        name = self.base if side == "base" or adapter else self._asker.model_of_aligned
        loaded = load_vlm(ModelConfig(name=name, dtype=dtype))
        loaded.model.to(device)
        if side == "aligned" and adapter is not None:
            loaded.model.load_adapter(str(adapter), is_trainable=False)
        return loaded


def marked(answer: str, other: str) -> str:
    """``answer`` as HTML, with the words marked that ``other`` does not have at that place."""
    own, theirs = re.findall(r"\S+|\s+", answer), re.findall(r"\S+|\s+", other)
    parts = []
    for kind, start, end, _, _ in difflib.SequenceMatcher(a=own, b=theirs, autojunk=False).get_opcodes():
        words = text("".join(own[start:end]))
        parts.append(words if kind == "equal" or not words.strip() else f"<mark>{words}</mark>")
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
    if len(files) > 200:
        raise ValueError(f"--pictures {folder} has {len(files)} pictures; at most 200 are offered")
    return {file.name: open_picture(file) for file in files}
