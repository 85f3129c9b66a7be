"""How a run ends early: each case is one message that says what to change, and no checkpoint is spoilt."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mmalign.training.config import Config
from mmalign.training.processes import Processes

SHOWN_SAMPLES = 8


class NonFiniteLoss(RuntimeError):
    """A loss or gradient that is NaN or infinite. ``step`` and ``sample_ids`` say where it began."""

    def __init__(self, message: str, step: int, sample_ids: tuple[str, ...]) -> None:
        super().__init__(message)
        self.step, self.sample_ids = step, sample_ids


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after a checkpoint was saved; the message says how to go on."""


class OutOfMemory(RuntimeError):
    """The device's memory was not enough; the message says what to change."""


class FiniteGuard:
    """Remembers which rows had a finite loss, on the device, until :meth:`check` reads all of it at once.

    Reading every step would make the device wait for the host. So a check comes with the other reads: on logging steps
    and before anything is kept (checkpoints, evaluation, pictures). By then the weights in memory may be spoilt, but
    nothing on disk is.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._rows: list[tuple[int, tuple[str, ...], Tensor]] = []
        self._gradients: list[tuple[int, Tensor]] = []

    def add_rows(self, step: int, sample_ids: tuple[str, ...], finite: Tensor) -> None:
        """``finite`` [batch]: whether each row's loss is."""
        self._rows.append((step, sample_ids, finite))

    def add_gradient(self, step: int, norm: Tensor) -> None:
        """The gradient norm of ``step``. Leave it out for a step that the fp16 scaler will skip by itself."""
        self._gradients.append((step, norm.isfinite()))

    def check(self) -> None:
        """Raise :class:`NonFiniteLoss` for the first step that was not finite on any process."""
        flags = [flags for _, _, flags in self._rows] + [flag.reshape(1) for _, flag in self._gradients]
        if not flags:
            return
        bad = self._processes.sum((~torch.cat(flags)).any().to(torch.int64))
        if bad.item():
            raise self._failure()
        self._rows.clear()
        self._gradients.clear()

    def _failure(self) -> NonFiniteLoss:
        rows = [
            (step, sample_id)
            for step, sample_ids, flags in self._rows
            for sample_id, finite in zip(sample_ids, flags.tolist(), strict=True)
            if not finite
        ]
        rows = self._processes.gather(rows)
        gradients = self._processes.gather([step for step, finite in self._gradients if not finite.item()])
        step = min([step for step, _ in rows] + gradients)
        samples = tuple(sample_id for bad_step, sample_id in rows if bad_step == step)
        if samples:
            what = f"the loss of step {step} is not finite for {_named(samples)}"
        else:
            of_step = self._processes.gather([name for seen, names, _ in self._rows if seen == step for name in names])
            samples = tuple(of_step)
            what = f"the gradient of step {step} is not finite although its losses are; its rows: {_named(samples)}"
        advice = (
            "Nothing of it was saved. Look at those rows; otherwise lower training.learning_rate, set "
            "training.max_grad_norm, or use training.mixed_precision=bf16 in place of fp16"
        )
        return NonFiniteLoss(f"{what}. {advice}", step, samples)


def _named(samples: tuple[str, ...]) -> str:
    shown = ", ".join(samples[:SHOWN_SAMPLES])
    more = f" and {len(samples) - SHOWN_SAMPLES} more" if len(samples) > SHOWN_SAMPLES else ""
    return f"{'sample' if len(samples) == 1 else 'samples'} {shown}{more}"


@contextmanager
def out_of_memory_explained(config: Config) -> Iterator[None]:
    """Turn the device's out-of-memory error into the settings that help, those first that change no result."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(_memory_advice(config, str(error))) from None


def _memory_advice(config: Config, error: str) -> str:
    training, advice = config.training, []
    if training.batch_size > 1:
        smaller = max(size for size in range(1, training.batch_size) if training.batch_size % size == 0)
        accumulation = training.accumulation * training.batch_size // smaller
        advice.append(f"training.batch_size={smaller} training.accumulation={accumulation} (the same result)")
    if not training.gradient_checkpointing:
        advice.append("training.gradient_checkpointing=true (the same result, about a third slower)")
    if training.mixed_precision == "no":
        advice.append("training.mixed_precision=bf16")
    if config.model.lora is None:
        advice.append("LoRA in place of full weights: model.lora.rank=16, with a higher learning rate")
        if training.optimizer == "adamw":
            advice.append("training.optimizer=adamw_8bit")
    if config.model.dtype == "float32":
        advice.append("model.dtype=bfloat16 for the frozen weights")
    advice.append(f"a lower data.resolution than {config.data.resolution}")
    lines = "\n".join(f"  - {line}" for line in advice)
    return f"the device ran out of memory. What to change, best first:\n{lines}\n({error.splitlines()[0]})"
