"""Watching mmalign's trainer from outside: where its steps begin, and how long the cache took to fill."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.recording import Moment


@contextlib.contextmanager
def replaced(patches: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Attributes replaced, and put back."""
    before = [(owner, name, owner.__dict__[name]) for owner, name, _ in patches if name in owner.__dict__]
    absent = [(owner, name) for owner, name, _ in patches if name not in owner.__dict__]
    for owner, name, value in patches:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        for owner, name in absent:
            delattr(owner, name)


@contextlib.contextmanager
def watched_steps(mark: Callable[[int], None]) -> Iterator[list[Moment]]:
    """``mark(step)`` is called as each training step begins; the list holds what each filling of the cache took."""
    from mmalign.training import image_disk
    from mmalign.training.trainer import Trainer

    fill, step, steps = image_disk.fill, Trainer._step, []
    encoding: list[Moment] = []

    def timed_fill(*arguments: Any) -> None:
        before = Moment.now()
        fill(*arguments)
        encoding.append(Moment.now() - before)

    def timed_step(*arguments: Any) -> None:
        mark(len(steps))
        steps.append(True)
        step(*arguments)

    with replaced([(image_disk, "fill", timed_fill), (Trainer, "_step", timed_step)]):
        yield encoding
