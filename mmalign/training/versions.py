"""What a run was made with, for ``versions.json`` and every checkpoint."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import mmalign

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy")


def versions(device: torch.device, *, seed: int, processes: int, command: str) -> dict[str, Any]:
    """Versions of mmalign and the packages below it, the git commit, the device, the seed and the command."""
    return {
        "mmalign": mmalign.__version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": processes,
        "seed": seed,
        "command": command,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _git_commit() -> str | None:
    """The commit of the checkout that mmalign runs from, with ``+changes`` where it is not clean; else None."""
    here = Path(__file__).parent
    try:
        # An installed copy may lie in somebody else's repository: only one that tracks this file counts.
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        commit = _git(here, "rev-parse", "HEAD")
        return f"{commit}+changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        timeout=10,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout.strip()
