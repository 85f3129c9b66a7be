"""Pictures that ``mmalign generate`` made: folders with the same prompts and seeds, compared without any model."""

import json
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from app.sources import MOST_PIXELS, OnStep, Picture, Request, bare, unique
from app.validation import check_choice
from mmalign.cli.manifest import MANIFEST, read_pictures

MOST_KEPT = 64


class GallerySource:
    """Folders such as ``OUT/base OUT/aligned``; what not all of them have is left out and counted in ``notice``."""

    live = False
    cheap = True

    def __init__(self, folders: Sequence[Path]) -> None:
        if len(folders) < 2:
            raise ValueError("--gallery needs two folders or more, such as --gallery OUT/base OUT/aligned")
        self._files = {}
        for name, folder in zip(_names(folders), folders, strict=True):
            self._files[name] = {key: _inside(file, folder) for key, file in read_pictures(folder).items()}
        self._about = {name: _settings_of(folder) for name, folder in zip(self._files, folders, strict=True)}
        common = set.intersection(*(set(files) for files in self._files.values()))
        if not common:
            raise ValueError(
                f"{', '.join(map(str, folders))} have no prompt and seed in common; "
                "generate them with the same --prompts and --seeds"
            )
        first = next(iter(self._files.values()))
        self._keys = [key for key in first if key in common]
        dropped = sum(len(files) - len(common) for files in self._files.values())
        self.notice = f"{len(self._keys)} prompts with seeds that {' and '.join(self.names)} have in common." + (
            f" {dropped} pictures without a counterpart are left out." if dropped else ""
        )
        self.title = " vs ".join(self.names)
        self._kept: OrderedDict[Path, Image.Image] = OrderedDict()

    @property
    def names(self) -> list[str]:
        """A name per folder."""
        return list(self._files)

    def warm(self) -> None:
        """Nothing has to be loaded."""

    def prompts(self) -> list[str]:
        """Prompts that every folder has."""
        return unique([prompt for prompt, _ in self._keys])

    def seeds(self, prompt: str) -> list[int]:
        """Seeds of ``prompt`` that every folder has."""
        return [seed for text, seed in self._keys if text == prompt]

    def weights(self, model: str, request: Request) -> Mapping[str, Any]:
        """What the manifest says about the weights of the first picture."""
        del request
        about = self._about[check_choice(model, "model", self.names)].get(self._keys[0], {})
        return {name: about[name] for name in ("model_hash", "adapter", "adapter_hash", "lora_scale") if name in about}

    def effective(self, model: str, request: Request) -> Request:
        """The request: nothing is sampled, so nothing is fixed."""
        del model
        return request

    def sample(self, model: str, request: Request, on_step: OnStep | None = None) -> list[Picture]:
        """The pictures of the folder; a prompt or seed that is not in it is a ``ValueError``."""
        files = self._files[check_choice(model, "model", self.names)]
        check_choice(request.prompt, "prompt", self.prompts())
        pictures = []
        for number, seed in enumerate(request.seeds, start=1):
            check_choice(seed, "seed", self.seeds(request.prompt))
            file = files[request.prompt, seed]
            about = self._about[model].get((request.prompt, seed), {})
            pictures.append(Picture(self._open(file), model, request.prompt, seed, about))
            if on_step is not None:
                on_step(number, len(request.seeds))
        return pictures

    def _open(self, file: Path) -> Image.Image:
        if file not in self._kept:
            self._kept[file] = open_picture(file)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return self._kept[file]


def open_picture(file: Path) -> Image.Image:
    """The pixels of ``file``; ``ValueError`` for what is no picture, is broken, or would unpack to a bomb."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    raise ValueError(
                        f"{file} has {opened.width} x {opened.height} pixels; at most {MOST_PIXELS} are shown"
                    )
                return bare(opened)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{file} cannot be shown: {error}") from error


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as it takes to tell them apart."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) != len(resolved):
        raise ValueError(f"--gallery names a folder twice: {', '.join(map(str, folders))}")
    for depth in range(1, 20):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]


def _inside(file: Path, folder: Path) -> Path:
    """``file`` without links and dots; a manifest that leads out of its folder is refused."""
    real = file.resolve()
    if not real.is_relative_to(folder.resolve()):
        raise ValueError(f"the {MANIFEST} of {folder} names {file}, which is outside of it; nothing else is shown")
    return real


def _settings_of(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """(prompt, seed) -> everything else the manifest says; its form was checked by ``read_pictures``."""
    manifest = next(path for path in (folder / MANIFEST, folder.parent / MANIFEST) if path.is_file())
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    own = [row for row in rows if (manifest.parent / row["file"]).is_relative_to(folder)]
    leave = ("file", "model", "prompt", "seed")
    return {(row["prompt"], row["seed"]): {key: row[key] for key in row if key not in leave} for row in own}
