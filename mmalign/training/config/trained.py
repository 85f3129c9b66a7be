"""What is trained and what it is compared with: combinations that cannot work, told in one line each."""

from mmalign.training.config.model import ModelConfig
from mmalign.training.config.reference import ReferenceConfig


def reference_problems(reference: ReferenceConfig, model: ModelConfig, steps: int) -> list[str]:
    """Why ``reference`` cannot be the reference of what ``model`` trains for ``steps`` steps; nothing is loaded."""
    kind, lora = reference.kind, model.lora
    problems = []
    if kind in ("lora_off", "adapter") and lora is None:
        problems.append(f"reference: {kind} needs model.lora; use frozen for full weights")
    if kind == "adapter" and lora is not None and lora.train_also:
        problems.append(
            f"reference: {kind} is not the reference of model.lora.train_also: {', '.join(lora.train_also)} is trained "
            "in the weights that policy and reference would share; use auto, lora_off or frozen, which keep a copy"
        )
    if kind == "lora_off" and lora is not None and lora.dora:
        problems.append(
            "reference: lora_off is not exactly the model that DoRA starts from, because W * m / |W| is rounded; use "
            "auto or adapter, a frozen copy of the untrained adapter"
        )
    if model.adapter is not None and lora is not None and lora.dora and kind != "adapter":
        problems.append(
            "model.lora.dora on top of model.adapter could not be exported as one LoRA; set dora: false, train a DoRA "
            "itself on with reference: adapter, or merge the adapter first: mmalign export ADAPTER --format merged"
        )
    if kind == "snapshot" and reference.every is not None and reference.every >= steps:
        problems.append(
            f"reference.every: {reference.every} would be ignored in {steps} steps; give fewer, or use frozen"
        )
    return problems


def precision_problems(model: ModelConfig, mixed_precision: str) -> list[str]:
    """Modules trained in full are fp32, which layers of another precision cannot feed without autocast."""
    if model.lora is None or not model.lora.train_also or model.dtype == "float32" or mixed_precision != "no":
        return []
    return [
        f"model.lora.train_also trains in float32 inside a {model.dtype} model: set training.mixed_precision=bf16, or "
        "model.dtype=float32"
    ]
