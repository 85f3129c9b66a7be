"""TRL's DPOTrainer as a side of ``benchmarks.vlm``: the same rows, model, LoRA and settings, else its defaults."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.vlm_models import LINEAR, Profile, model_of, processor_of
from benchmarks.vlm_settings import BETA, CLIP, DECAY, RATE, SEED, Side, autocast
from mmalign.types import VLMPair


def trl_side(profile: Profile, rows: Sequence[VLMPair], steps: int, folder: Path) -> Side:
    """DPOTrainer, ready to train ``rows`` for ``steps``."""
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer  # type: ignore[import-not-found] - an optional extra

    marks: list[Callable[[], None]] = []

    class Marks(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks[0]()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks[0]()

    bf16 = profile.dtype == "bfloat16"
    arguments = DPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=profile.batch_size,
        max_steps=steps,
        beta=BETA,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        optim="adamw_torch_fused" if profile.device == "cuda" else "adamw_torch",
        bf16=bf16,
        use_cpu=profile.device == "cpu",
        gradient_checkpointing=profile.checkpointing,
        max_length=None,
        logging_steps=steps + 1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=SEED,
    )
    layers = rf".*language_model\..*\.({'|'.join(LINEAR)})"
    trainer = DPOTrainer(
        model=model_of(profile),
        args=arguments,
        train_dataset=_dataset(rows),
        processing_class=processor_of(profile),
        peft_config=LoraConfig(r=profile.rank, lora_alpha=profile.rank, lora_dropout=0.0, target_modules=layers),
        callbacks=[Marks()],
    )

    def step_0() -> tuple[Tensor, dict[str, Tensor]]:
        sums: list[Tensor] = []
        hook = trainer.model.register_forward_hook(lambda _, __, made: sums.append(made.log_probs.sum(dim=1)))
        inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[n] for n in range(len(rows))]))
        with autocast(profile):
            loss = trainer.compute_loss(trainer.model, inputs)
        hook.remove()
        named = {}
        for prefix, of in zip(("", "ref_"), sums, strict=True):
            named[f"{prefix}chosen_logp"], named[f"{prefix}rejected_logp"] = of.chunk(2)
        return loss, named

    def train(mark: Callable[[], None]) -> None:
        marks.append(mark)
        trainer.train()

    return Side(trainer.model, step_0, train)


def _dataset(rows: Sequence[VLMPair]) -> Any:
    """``rows`` as TRL reads them: pictures as encoded bytes, which are decoded when a row is loaded."""
    from datasets import Dataset, Image, List  # type: ignore[import-not-found] - an optional extra

    made = Dataset.from_list(
        [
            {
                "images": [{"bytes": image.read(), "path": None} for image in row.images],
                "prompt": [{"role": "user", "content": _words(row)}],
                "chosen": [{"role": "assistant", "content": row.chosen}],
                "rejected": [{"role": "assistant", "content": row.rejected}],
            }
            for row in rows
        ]
    )
    return made.cast_column("images", List(Image()))


def _words(row: VLMPair) -> str:
    return " ".join(part for part in row.prompt[0].content if isinstance(part, str))
