"""The published training scripts that ``benchmarks.diffusion`` knows, and what they are called with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.diffusion_profiles import BETA, CLIP, DECAY, MAPO_BETA, SEED, SNR, Profile

PATCHES = {
    "stop": "the script is stopped after the last timed step, before it saves anything",
    "clock": "the clock is read where `Accelerator.accumulate` is entered",
    "wandb": "an empty module `wandb`, which the script imports and does not use here",
    "xformers": "an empty module `xformers`, and enabling it does nothing: attention is torch's own",
    "cuda": "where there is no GPU, `.to('cuda')` leaves a tensor where it is",
    "check": "for the comparison of losses alone: rows in the file's order, the latents' mean, given noise, timesteps "
    "and LoRA (or moved weights), learning rate 0",
}


@dataclass(frozen=True)
class Peer:
    """``file``: what the script is called, by which it is recognised together with ``mark``, a text that it holds."""

    name: str
    file: str
    mark: str
    source: str
    objective: dict[str, Any]
    patches: tuple[str, ...]
    lora: bool = True
    optimizer: str = "adamw"
    max_grad_norm: float | None = CLIP
    checkpoints: bool = False
    needs: tuple[str, ...] = ("datasets",)


DPO = {"loss": "dpo", "beta": BETA}
MAPO = {"loss": "mapo", "beta": MAPO_BETA, "snr": SNR}
PEERS = {
    peer.name: peer
    for peer in (
        Peer("diffusers", "train_diffusion_dpo_sdxl.py", "beta_dpo", "huggingface/diffusers", DPO, ("wandb",)),
        Peer("mapo", "train_with_lora.py", "lora_rank", "mapo-t2i/mapo", MAPO, ("wandb",)),
        Peer(
            "salesforce",
            "train.py",
            "ref_unet",
            "SalesforceAIResearch/DiffusionDPO",
            DPO,
            ("xformers", "cuda"),
            lora=False,
            optimizer="adafactor",
            max_grad_norm=None,
            checkpoints=True,
        ),
    )
}


def peer_of(script: Path | str) -> Peer:
    """By the script's path, or by its name in ``PEERS``."""
    return recognised(script) if isinstance(script, Path) else PEERS[script]


def recognised(script: Path) -> Peer:
    """Which published script ``script`` is; SystemExit where it is none of them."""
    if not script.is_file():
        raise SystemExit(f"--peer-script {script}: there is no such file")
    text = script.read_text(encoding="utf-8")
    for peer in PEERS.values():
        if script.name == peer.file and peer.mark in text:
            return peer
    known = ", ".join(f"{peer.file} of {peer.source}" for peer in PEERS.values())
    raise SystemExit(f"--peer-script {script} is none of the scripts that are known here: {known}")


def arguments_of(peer: Peer, profile: Profile, model: Path, data: Path, work: Path, rate: float) -> list[str]:
    """The command line of a script for the same work as ours."""
    common = {
        "pretrained_model_name_or_path": model,
        "dataset_name": data,
        "cache_dir": work / "datasets",
        "output_dir": work / "out",
        "resolution": profile.shape.resolution,
        "train_batch_size": profile.batch_size,
        "max_train_steps": profile.warm_up + profile.steps + 1,
        "learning_rate": rate,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "adam_weight_decay": DECAY,
        "max_grad_norm": CLIP,
        "seed": SEED,
        "mixed_precision": profile.precision,
        "report_to": "tensorboard",
    }
    own: dict[str, dict[str, Any]] = {
        "diffusers": {"dataset_split_name": "train", "rank": profile.rank, "beta_dpo": BETA},
        "mapo": {
            "dataset_split_name": "train",
            "lora_rank": profile.rank,
            "beta_mapo": MAPO_BETA,
            "snr_value": SNR,
        },
        "salesforce": {"split": "train", "caption_column": "caption", "beta_dpo": BETA, "proportion_empty_prompts": 0},
    }
    flags = ["--no_hflip", *(["--gradient_checkpointing"] if profile.checkpointing else [])]
    flags += ["--sdxl"] if peer.name == "salesforce" else []
    pairs = {**common, **own[peer.name]}
    return [*(text for name, value in pairs.items() for text in (f"--{name}", str(value))), *flags]
