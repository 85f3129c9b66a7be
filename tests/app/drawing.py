"""Sources for browser tests that make their sides in no time, or as slowly as a test needs."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from app.answers import AnswerSource
from app.settings import checked
from app.sources import OnStep, Picture, Request
from mmalign.playground.captions import parse
from mmalign.playground.renderer import render
from mmalign.playground.scene import arrange, held_out_prompts, sample_scene


class DrawnSource:
    """Free prompts in the playground's grammar: ``base`` draws any scene, ``aligned`` what the prompt says.

    ``seconds``: how long a step takes. ``begun`` is set once a picture is being made, ``stopped`` holds what ended one.
    """

    live, cheap, has_lora = True, False, True
    title, notice = "base vs aligned", ""
    names = ("base", "aligned")
    settings = SimpleNamespace(steps=2, guidance=2.0)

    def __init__(self) -> None:
        self.seconds = 0.0
        self.begun = threading.Event()
        self.stopped: list[Exception] = []
        self.asked: list[Request] = []

    def warm(self) -> None:
        pass

    def prompts(self) -> list[str]:
        return held_out_prompts("single", 6)

    def seeds(self, prompt: str) -> list[int]:
        return []

    def weights(self, model: str, request: Request) -> dict[str, Any]:
        return {}

    def effective(self, model: str, request: Request) -> Request:
        return request

    def sample(self, model: str, request: Request, on_step: OnStep | None = None) -> list[Picture]:
        self.asked.append(request)
        steps = request.steps * len(request.seeds)
        for step in range(1, steps + 1):
            self.begun.set()
            time.sleep(self.seconds)
            try:
                if on_step is not None:
                    on_step(step, steps)
            except Exception as error:
                self.stopped.append(error)
                raise
        return [self._picture(model, request.prompt, seed) for seed in request.seeds]

    def _picture(self, model: str, prompt: str, seed: int) -> Picture:
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, "single") if model == "base" else arrange(parse(prompt), rng)
        return Picture(Image.fromarray(render(scene)), model, prompt, seed, {"steps": 2})


class CannedAnswers(AnswerSource):
    """tiny-llava twice, with answers that no model is loaded for."""

    def __init__(self) -> None:
        models = [{"name": name, "base": "playground/tiny-llava"} for name in ("base", "aligned")]
        super().__init__(checked({"models": models}, "the test"), None, "cpu")

    def weights(self, model: str) -> dict[str, str | None]:
        return {"adapter": model, "adapter_hash": "0" * 64}

    def answer(self, model: str, picture: str, question: str) -> str:
        wordy = (int(picture.split()[-1]) % 2 == 0) == (model == "base")
        return f"there is a {'red' if model == 'base' else 'blue'} star, as {question}" + " and no more" * wordy
