"""Published training scripts as sides of ``benchmarks.diffusion``: run from the path that the user gives.

Nothing of a script is edited or copied. What is patched while it runs is in ``PATCHES`` of ``diffusion_scripts`` and is
written beside the table.
"""

import contextlib
import importlib.machinery
import importlib.util
import math
import os
import runpy
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.diffusion_profiles import RATE, Profile, forced_noise, forced_timestep, moved
from benchmarks.diffusion_scripts import Peer, arguments_of, recognised
from benchmarks.peeking import replaced


class Enough(Exception):
    """Raised by a mark: all that was wanted has been done."""


def run_peer(
    script: Path, profile: Profile, folders: tuple[Path, Path, Path], mark: Callable[[int], None], rate: float = RATE
) -> None:
    """Run ``script`` on ``folders`` (model, data, work).

    ``mark(step)`` is called when a step begins and ends the run by raising :class:`Enough`.
    """
    peer = recognised(script)
    model, data, work = (folder.resolve() for folder in folders)
    arguments = arguments_of(peer, profile, model, data, work, rate)
    with _patched(peer, mark), _as_program(script.resolve(), arguments):
        try:
            runpy.run_path(str(script.resolve()), run_name="__main__")
        except Enough:
            return
    raise SystemExit(f"{script} came to its end before {profile.warm_up + profile.steps} steps were done")


@contextlib.contextmanager
def checked(peer: Peer, said: list[dict[str, float]], rows: int) -> Iterator[Callable[[int], None]]:
    """Force what is random; ``said`` gets loss and norm of the gradient of each of the first ``rows`` rows."""
    from accelerate import Accelerator
    from diffusers import UNet2DConditionModel
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from torch.utils.data import DataLoader

    now = [0]
    add_adapter, load, backward = (
        UNet2DConditionModel.add_adapter,
        UNet2DConditionModel.from_pretrained,
        Accelerator.backward,
    )
    loaded: list[Any] = []

    def added(self: Any, *arguments: Any, **settings: Any) -> None:
        add_adapter(self, *arguments, **settings)
        moved(self, lora=True)

    def second_is_moved(*arguments: Any, **settings: Any) -> Any:
        loaded.append(load(*arguments, **settings))
        if not peer.lora and len(loaded) == 2:  # the first is the reference
            moved(loaded[1], lora=False)
        return loaded[-1]

    def told(self: Any, loss: torch.Tensor, **settings: Any) -> None:
        backward(self, loss, **settings)
        said.append({"loss": float(loss.detach()), "gradient_norm": norm_of(self._models[0])})

    def mark(step: int) -> None:
        now[0] = step
        if step == rows:
            raise Enough

    make = DataLoader.__init__

    def in_order(self: Any, *arguments: Any, **settings: Any) -> None:
        make(self, *arguments, **{**settings, "shuffle": False})

    patches: list[tuple[Any, str, Any]] = [
        (UNet2DConditionModel, "add_adapter", added),
        (UNet2DConditionModel, "from_pretrained", second_is_moved),
        (Accelerator, "backward", told),
        (DiagonalGaussianDistribution, "sample", lambda self, **_: self.mode()),
        (torch, "randn_like", lambda like, **_: forced_noise(now[0], like.shape[1:]).to(like).expand_as(like).clone()),
        (
            torch,
            "randint",
            lambda *given, **more: torch.full(given[2], forced_timestep(now[0]), device=more.get("device")),
        ),
        (DataLoader, "__init__", in_order),
    ]
    with replaced(patches):
        yield mark


def norm_of(module: torch.nn.Module) -> float:
    """The norm of all gradients together."""
    gradients = [value.grad for value in module.parameters() if value.grad is not None]
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))


@contextlib.contextmanager
def _patched(peer: Peer, mark: Callable[[int], None]) -> Iterator[None]:
    import diffusers
    from accelerate import Accelerator

    accumulate, steps = Accelerator.accumulate, []

    def marked(self: Any, *models: Any) -> Any:
        mark(len(steps))
        steps.append(True)
        return accumulate(self, *models)

    patches: list[tuple[Any, str, Any]] = [(Accelerator, "accumulate", marked)]
    stubs = []
    if "wandb" in peer.patches and not importlib.util.find_spec("wandb"):
        stubs.append("wandb")
    if "xformers" in peer.patches:
        stubs.append("xformers")
        patches.append((diffusers.utils.import_utils, "is_xformers_available", lambda: True))
        patches.append((diffusers.UNet2DConditionModel, "enable_xformers_memory_efficient_attention", lambda _: None))
    if "cuda" in peer.patches and not torch.cuda.is_available():
        to = torch.Tensor.to
        patches.append((torch.Tensor, "to", lambda self, *on, **how: self if on == ("cuda",) else to(self, *on, **how)))
    for name in stubs:
        module: Any = types.ModuleType(name)
        module.__spec__, module.__version__ = importlib.machinery.ModuleSpec(name, None), "0.0.17"
        sys.modules[name] = module
    try:
        with replaced(patches):
            yield
    finally:
        for name in stubs:
            del sys.modules[name]


@contextlib.contextmanager
def _as_program(script: Path, arguments: list[str]) -> Iterator[None]:
    """``sys.argv``, the folder it starts in (a script reads files there) and the first place of imports, as if run."""
    before, folder = (sys.argv, list(sys.path)), Path.cwd()
    sys.argv, sys.path = [str(script), *arguments], [str(script.parent), *sys.path]
    os.chdir(script.parent)
    try:
        yield
    finally:
        (sys.argv, sys.path) = before
        os.chdir(folder)
