"""Model families that other packages train, through the entry-point group ``mmalign.families``.

The schema of a family's settings is mmalign's (``training.config``), so that every mistake is told at once; what trains
is a package built on mmalign, which mmalign does not import.
"""

from importlib.metadata import entry_points
from typing import Any, Protocol

from mmalign.training.config import Config
from mmalign.training.mistakes import Mistake

GROUP = "mmalign.families"


class FamilyPlugIn(Protocol):
    """What an entry point of the group is: two functions, most simply a module that has them."""

    def mistakes(self, config: Config, objective: Any, *, check_files: bool) -> list[Mistake]:
        """What is wrong with a configuration that is valid by the schema; no weight is read.

        ``check_files``: look also at what depends on this machine, such as whether the model is there.
        """
        ...

    def run(self, config: Config) -> Any:
        """The run (``training.run.RunOfFamily``); ValueError for the same mistakes."""
        ...


def plug_in(family: str) -> FamilyPlugIn:
    """The package's part for ``family``; ValueError where none, or more than one, is installed."""
    found = [entry for entry in entry_points(group=GROUP) if entry.name == family]
    if len(found) != 1:
        told = ", ".join(entry.value for entry in found) or "none"
        raise ValueError(
            f"family: {family} needs one package with an entry point {family!r} in the group {GROUP!r}, and there is "
            f"{told}; reward_models, which comes with mmalign, brings reward: install mmalign anew"
        )
    return found[0].load()
