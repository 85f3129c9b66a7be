"""Finding published weights, reading them safely, and putting them into a module without a key left over.

Weights are looked for in this order: what the caller names, the folder ``$MMALIGN_REWARDS``, the cache of the hub.
With a network the hub is then asked, which is said; without one the error names repository, file and command.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from reward_models.hashes import check_hash

FOLDER = "MMALIGN_REWARDS"
NAMED = 5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Source:
    """Published weights: a repository of the hub, or some other place that ``page`` tells, and its files.

    ``files``: each entry is one file, or alternatives (``a|b``) of which the first that exists is used. ``sha256``:
    file -> digest of the published file, where it is known (see ``reward_models.hashes``). ``page``: for files that
    are on no hub, what to do to get them.
    """

    repository: str
    files: tuple[str, ...]
    licence: str
    sha256: Mapping[str, str] = field(default_factory=dict)
    page: str | None = None

    @property
    def folder(self) -> str:
        """Name of this repository's folder under ``$MMALIGN_REWARDS``."""
        return self.repository.replace("/", "--")

    def command(self) -> str:
        """What to type, where there is a network, to have the files."""
        if self.page is not None:
            return self.page
        files = " ".join(entry.split("|")[0] for entry in self.files)
        return f"hf download {self.repository} {files} --local-dir ${FOLDER}/{self.folder}"


def locate(source: Source, reward: str, weights: str | Path | None = None) -> list[Path]:
    """The files of ``source``, in its order. ``weights``: a file, its folder, or a folder laid out as $MMALIGN_REWARDS.

    Raises ValueError that says where was looked, what is missing and how to get it, and for a file whose hash is wrong.
    """
    places = _places(source, weights)
    for place in places:
        found = _files_in(place, source)
        if found is not None:
            return [check_hash(path, source.sha256) for path in found]
    if weights is None and source.page is None:
        return [check_hash(path, source.sha256) for path in _from_hub(source, reward, places)]
    raise ValueError(_missing(source, reward, places))


def _places(source: Source, weights: str | Path | None) -> list[Path]:
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.exists():
            raise ValueError(f"weights={path} does not exist; give a file or folder with {', '.join(source.files)}")
        return [path] if path.is_file() else [path / source.folder, path]
    root = os.environ.get(FOLDER)
    return [] if not root else [Path(root).expanduser() / source.folder]


def _files_in(place: Path, source: Source) -> list[Path] | None:
    """The files below ``place``, or ``place`` itself where it is the one file; None where one is missing."""
    if place.is_file():
        return [place] if len(source.files) == 1 else None
    found = []
    for entry in source.files:
        paths = [place / name for name in entry.split("|") if (place / name).is_file()]
        if not paths:
            return None
        found.append(paths[0])
    return found


def _from_hub(source: Source, reward: str, places: Sequence[Path]) -> list[Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    found = []
    for entry in source.files:
        names, path = entry.split("|"), None
        for offline in (True, False)[: 1 if HF_HUB_OFFLINE else 2]:
            for name in names:
                if path is not None:
                    break
                try:
                    if not offline:
                        print(f"{reward}: downloading {source.repository} {name} ({source.licence})", file=sys.stderr)
                    path = Path(hf_hub_download(source.repository, name, local_files_only=offline))
                except LocalEntryNotFoundError as error:
                    if not offline:
                        raise ValueError(_missing(source, reward, places)) from error
                except EntryNotFoundError:
                    continue
                except (HfHubHTTPError, OSError) as error:
                    raise ValueError(f"{_missing(source, reward, places)}\nThe hub said: {error}") from error
        if path is None:
            raise ValueError(_missing(source, reward, places))
        found.append(path)
    return found


def _missing(source: Source, reward: str, places: Sequence[Path]) -> str:
    looked = [*map(str, places)]
    if source.page is None and not any(place.is_file() for place in places):
        looked.append("the hub's cache")
    files = ", ".join(entry.replace("|", " or ") for entry in source.files)
    return (
        f"reward {reward!r} needs {files} of {source.repository} (licence: {source.licence}), which "
        f"{'is' if len(source.files) == 1 else 'are'} not in {' or '.join(looked) or f'${FOLDER}, which is not set'}. "
        f"Where there is a network: {source.command()}\n"
        f"Then set {FOLDER} to that folder's parent, or pass weights=PATH"
    )


def read_state(path: Path, *, convert: str | None = None) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or torch file, by name; a dict under ``state_dict`` or ``model`` is unwrapped.

    Nothing is unpickled but tensors. ``convert``: what to do with a published file that is a pickled module.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, ... by what is wrong
        advice = convert or (
            f"torch.save(torch.load({path.name!r}, weights_only=False).state_dict(), 'state.pt'), in an environment "
            "that you can throw away"
        )
        raise ValueError(
            f"{path} does not hold plain tensors, and nothing else is unpickled, because that runs code it finds. "
            f"If it is a whole pickled module, convert it once: {advice}. ({_first_line(error)})"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not tensors by name")
    return {name.removeprefix("module."): value for name, value in loaded.items()}


def build(make: Callable[[], nn.Module]) -> nn.Module:
    """``make()`` without memory for weights, which :func:`fill` brings."""
    with torch.device("meta"):
        return make()


def fill(module: nn.Module, state: Mapping[str, Tensor], origin: str, *, dtype: str, device: torch.device) -> None:
    """Put ``state`` into a module of :func:`build`: every key, every shape, or a ValueError that lists what differs.

    Older files also hold ``position_ids``, which are 0, 1, 2, ...; they are compared and left out.
    """
    state = {name: value for name, value in state.items() if not _is_position_ids(name, value, module)}
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    shapes = [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise ValueError(f"{origin}: these are other weights than this model's: {'; '.join(problems)}")
    # A checkpoint may keep two names for one tensor, or views of one storage: each becomes a tensor of its own.
    placed = {
        name: value.to(device=device, dtype=find_dtype(dtype) if value.is_floating_point() else None, copy=True)
        for name, value in state.items()
    }
    module.load_state_dict(placed, strict=True, assign=True)
    _compute_buffers(module, device)
    module.requires_grad_(False).eval()


def _is_position_ids(name: str, value: Tensor, module: nn.Module) -> bool:
    if not name.endswith("position_ids") or name in module.state_dict():
        return False
    if not torch.equal(value.flatten().long(), torch.arange(value.numel())):
        raise ValueError(f"{name} is not 0, 1, 2, ...: these are other weights than this model's")
    return True


def _compute_buffers(module: nn.Module, device: torch.device) -> None:
    """Buffers that no file holds: positions 0, 1, 2, ... and open_clip's causal mask."""
    for prefix, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if not buffer.is_meta:
                continue
            if name == "position_ids":
                value = torch.arange(buffer.numel(), device=device).view(buffer.shape)
            elif name == "attn_mask":
                value = torch.full(buffer.shape, float("-inf"), device=device).triu(1)
            else:
                raise RuntimeError(f"buffer {prefix}.{name} has no value: tell reward_models.weights how to compute it")
            part.register_buffer(name, value, persistent=False)


def find_device(device: str | torch.device | None) -> torch.device:
    """``device``, or CUDA where there is one."""
    return torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")


def find_dtype(dtype: str) -> torch.dtype:
    """``float32``, ``bfloat16`` or ``float16`` as a torch dtype."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; choose {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
