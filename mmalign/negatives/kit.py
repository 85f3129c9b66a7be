"""What every way of making negatives gets, and what it has to be: the contract behind ``GENERATORS``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from mmalign.negatives.answers import Answered
from mmalign.negatives.building import Make
from mmalign.negatives.speaking import Speaker


@dataclass(frozen=True)
class Kit:
    """``rows``: all of them, read from disk one by one when asked for. ``speaker``: the model, where one is loaded.

    ``folder``: a place for what a method wants to keep until the file is written (an index of pictures, say); it goes
    away with the journal, so what was there when a run was interrupted is there when it goes on.
    """

    rows: Sequence[Answered]
    folder: Path
    seed: int = 0
    speaker: Speaker | None = None

    @property
    def voice(self) -> Speaker:
        """The model that speaks; ValueError where none was given."""
        if self.speaker is None:
            raise ValueError("this method speaks with a model, and none was given (--model)")
        return self.speaker


class Method(Protocol):
    """A way to make negatives: a frozen dataclass whose fields are its settings (``--set name=value``).

    Its docstring's first line is what ``mmalign negatives --methods`` shows. A setting outside its range is a
    ValueError of the dataclass itself, so that it comes before a model is loaded. ``speaks``: it needs a model.
    ``reads_response``: it starts from the row's response, so a bare picture is answered by the model first.
    """

    speaks: ClassVar[bool]
    reads_response: ClassVar[bool]

    def open(self, kit: Kit) -> Make:
        """Whatever has to be done once, and then the function that is called for each row."""
        ...
