"""What every table is recorded with: where, with what, at which commit, by which command; and seconds of two clocks."""

import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path("benchmarks/results")
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "trl", "datasets")


class Moment(NamedTuple):
    """Seconds on the clock and of the processor."""

    clock: float
    cpu: float

    @classmethod
    def now(cls) -> "Moment":
        return cls(time.time(), time.process_time())

    def __sub__(self, earlier: "Moment") -> "Moment":
        return Moment(self.clock - earlier.clock, self.cpu - earlier.cpu)

    def __truediv__(self, number: float) -> "Moment":
        return Moment(self.clock / number, self.cpu / number)

    def named(self, name: str) -> dict[str, float]:
        """``NAME_seconds`` and ``NAME_cpu_seconds``."""
        return {f"{name}_seconds": self.clock, f"{name}_cpu_seconds": self.cpu}


def sum_of(moments: Iterable[Moment]) -> Moment:
    """Of both clocks; zero of none."""
    kept = list(moments)
    return Moment(sum(each.clock for each in kept), sum(each.cpu for each in kept))


def peak_rss_mib() -> float:
    """The most memory that this process has held so far, in this program.

    ``getrusage`` says more where the process that started this one had held more: Linux hands its peak down through
    fork and exec. ``VmHWM`` begins anew with the program.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Of the packages that are installed, and of Python."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, "python": platform.python_version()}


def commit() -> str:
    """The commit that is checked out."""
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()


def hardware(device: str = "cpu") -> str:
    """The machine in words, with its accelerator where ``device`` is one."""
    place = f"{platform.machine()}, {os.cpu_count()} cores"
    if device == "cpu":
        return f"{place}, no GPU used, one thread"
    import torch

    return f"{torch.cuda.get_device_name()}, {place}"


def circumstances(command: str, device: str = "cpu") -> dict[str, Any]:
    """Everything about a run that is not its numbers."""
    return {
        "command": command,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": hardware(device),
        "load_average": [round(os.getloadavg()[0], 1)],
        "versions": versions(),
    }


def heading(title: str, told: Mapping[str, Any]) -> str:
    """The first lines of a table, from :func:`circumstances`."""
    packages = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    loads = told["load_average"]
    return (
        f"# {title}\n\n`{told['command']}` at commit `{told['commit'][:12]}` on {told['machine']} ({packages}); load "
        f"average {min(loads):g} to {max(loads):g}.\n"
    )


def write(results: Any, text: str, out: Path) -> None:
    """``results`` to ``out`` and their table beside it, each replaced as a whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, content in ((out, json.dumps(results, indent=1) + "\n"), (out.with_suffix(".md"), text)):
        new = path.with_name(f"{path.name}.new")
        new.write_text(content, encoding="utf-8")
        new.replace(path)
