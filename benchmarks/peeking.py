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
    """``mark(step)`` is called as each training step begins.

    The list holds what each filling of a cache took, of latents and text or of the reference's scores.
    """
    from mmalign.training import cache_run, image_disk
    from mmalign.training.kept_scores_build import _Builder
    from mmalign.training.trainer import Trainer

    step, steps = Trainer._step, []
    filled: list[Moment] = []

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            before = Moment.now()
            made = call(*arguments)
            filled.append(Moment.now() - before)
            return made

        return called

    def timed_step(*arguments: Any) -> None:
        mark(len(steps))
        steps.append(True)
        step(*arguments)

    patches = [(owner, "fill", timed(image_disk.fill)) for owner in (image_disk, cache_run)]
    with replaced([*patches, (_Builder, "build", timed(_Builder.build)), (Trainer, "_step", timed_step)]):
        yield filled
