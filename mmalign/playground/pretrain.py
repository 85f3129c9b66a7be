"""Train ``tiny-sdxl`` from scratch: ``python -m mmalign.playground.pretrain --out FOLDER [--device cuda]``.

Two phases, as for the real model: a VAE on rendered pictures, then the UNet with both text encoders on its latents
with the epsilon objective, caption dropout for guidance, and an exponential moving average of the weights. Interrupted
runs continue with the same command. Ends by writing the pipeline folder in fp16 and the oracle's opinion of it.
"""

import argparse
import copy
import json
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.playground.captions import caption
from mmalign.playground.renderer import render
from mmalign.playground.scene import LEVELS, sample_scene
from mmalign.playground.tiny_sdxl import IMAGE_SIZE, build_tiny_sdxl

LEVEL_SHARES = {"single": 0.88, "pair": 0.03, "trio": 0.02, "count": 0.035, "relation": 0.035}


@dataclass(frozen=True)
class Settings:
    """Sizes of the run. The shipped weights say theirs in ``pretrain.json``."""

    images: int = 40_000
    vae_steps: int = 1400
    vae_batch: int = 32
    unet_steps: int = 3000
    unet_batch: int = 64
    learning_rate: float = 1e-3
    dropout: float = 0.1
    ema_decay: float = 0.998
    precision: str = "bf16"
    judged_prompts: int = 250
    seed: int = 0


def _render_chunk(seed: int, rows: int) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    levels = rng.choice(list(LEVEL_SHARES), rows, p=list(LEVEL_SHARES.values()))
    scenes = [sample_scene(rng, str(level)) for level in levels]
    captions = [caption(scene, rng if rng.random() < 0.5 else None) for scene in scenes]
    return np.stack([render(scene, IMAGE_SIZE) for scene in scenes]), captions


def render_dataset(rows: int, seed: int, chunk: int = 1000) -> tuple[Tensor, list[str]]:
    """Pictures [rows, 3, 64, 64] uint8 of combinations open to training, and their captions."""
    sizes = [min(chunk, rows - start) for start in range(0, rows, chunk)]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        parts = list(pool.map(_render_chunk, [seed * 1_000_003 + i for i in range(len(sizes))], sizes))
    pictures = torch.from_numpy(np.concatenate([part[0] for part in parts])).permute(0, 3, 1, 2).contiguous()
    return pictures, [text for part in parts for text in part[1]]


def _to_unit(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1


class Progress:
    """Resumable state of one phase: modules and optimizer, written atomically every ``every`` steps."""

    def __init__(self, path: Path, every: int = 250) -> None:
        self.path, self.every = path, every

    def load(self, phase: str, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> int:
        """The step to continue from."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True, map_location="cpu")
        if state["phase"] != phase:
            return 0
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"]

    def save(self, phase: str, step: int, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
        """Write, then rename, so that an interruption leaves the previous state."""
        state = {"phase": phase, "step": step, "modules": modules.state_dict(), "optimizer": optimizer.state_dict()}
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.path)


def _autocast(device: torch.device, settings: Settings) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")


def _learning_rate(step: int, total: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _log(phase: str, step: int, total: int, loss: Tensor, started: float, first: int) -> None:
    if step % 50 == 0 or step == total - 1:
        elapsed = time.perf_counter() - started
        left = elapsed / max(1, step + 1 - first) * (total - step - 1)
        print(
            f"{phase} {step + 1}/{total} loss {loss.item():.4f} elapsed {elapsed:.0f} s left {left:.0f} s", flush=True
        )


def train_vae(vae: Any, pictures: Tensor, settings: Settings, progress: Progress) -> None:
    """Reconstruction (L1 + MSE) with a slight KL, as AutoencoderKL is meant to be trained without a discriminator."""
    device = pictures.device
    modules = nn.ModuleDict({"vae": vae})
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0)
    first, total, started = progress.load("vae", modules, optimizer), settings.vae_steps, time.perf_counter()
    vae.train()
    for step in range(first, total):
        draws = torch.Generator().manual_seed(settings.seed * 7919 + step)
        rows = torch.randint(len(pictures), (settings.vae_batch,), generator=draws)
        target = _to_unit(pictures[rows.to(device)])
        with _autocast(device, settings):
            posterior = vae.encode(target).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        loss = F.l1_loss(decoded, target) + F.mse_loss(decoded, target) + 1e-6 * posterior.kl().mean()
        _step(optimizer, loss, modules, _learning_rate(step, total, 2e-3))
        _log("vae", step, total, loss, started, first)
        if (step + 1) % progress.every == 0:
            progress.save("vae", step + 1, modules, optimizer)
    vae.eval()


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, modules: nn.Module, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def encode_dataset(vae: Any, pictures: Tensor, batch: int = 500) -> Tensor:
    """Posterior means and standard deviations, [rows, 2, 4, 16, 16], and ``scaling_factor`` set to 1 / their spread."""
    parts = []
    for chunk in pictures.split(batch):
        posterior = vae.encode(_to_unit(chunk)).latent_dist
        parts.append(torch.stack([posterior.mean, posterior.std], dim=1))
    moments = torch.cat(parts)
    sample = moments[:, 0] + moments[:, 1] * torch.randn_like(moments[:, 0])
    vae.register_to_config(scaling_factor=round(1 / sample.std().item(), 5))
    return moments


class _Conditioning(nn.Module):
    """Both text encoders as the SDXL pipeline uses them: penultimate states side by side, pooled from the second."""

    def __init__(self, text_encoder: nn.Module, text_encoder_2: nn.Module) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = text_encoder, text_encoder_2

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        first = self.text_encoder(tokens, output_hidden_states=True)
        second = self.text_encoder_2(tokens, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


class _Denoiser(nn.Module):
    """Tokens, latents and timesteps -> predicted noise; dropped captions become zeros, as SDXL's empty prompt does."""

    def __init__(self, conditioning: nn.Module, unet: nn.Module) -> None:
        super().__init__()
        self.conditioning, self.unet = conditioning, unet

    def forward(self, noisy: Tensor, timestep: Tensor, tokens: Tensor, keep: Tensor) -> Tensor:
        embeds, pooled = self.conditioning(tokens)
        time_ids = torch.tensor([[IMAGE_SIZE, IMAGE_SIZE, 0, 0, IMAGE_SIZE, IMAGE_SIZE]], device=noisy.device).float()
        added = {"text_embeds": pooled * keep[:, None], "time_ids": time_ids.expand(len(noisy), -1)}
        embeds = embeds * keep[:, None, None]
        return self.unet(noisy, timestep, embeds, added_cond_kwargs=added).sample


def train_unet(
    pipe: Any, moments: Tensor, tokens: Tensor, alphas: Tensor, settings: Settings, progress: Progress
) -> None:
    """E || unet(x_t, t, caption) - noise ||^2 over t ~ U{0..999}; the pipeline ends with the averaged weights."""
    device = moments.device
    model = _Denoiser(_Conditioning(pipe.text_encoder, pipe.text_encoder_2), pipe.unet).to(device)
    average = copy.deepcopy(model).requires_grad_(False)
    modules = nn.ModuleDict({"model": model, "average": average})
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    first, total, started = progress.load("unet", modules, optimizer), settings.unet_steps, time.perf_counter()
    scale, shape = pipe.vae.config.scaling_factor, (settings.unet_batch, *moments.shape[2:])
    if device.type == "cuda":
        model.unet.compile()
    model.train()
    for step in range(first, total):
        draws = torch.Generator(device).manual_seed(settings.seed * 7919 + step)
        rows = torch.randint(len(moments), (settings.unet_batch,), generator=draws, device=device)
        picked = moments[rows]
        latents = (picked[:, 0] + picked[:, 1] * torch.randn(shape, generator=draws, device=device)) * scale
        noise = torch.randn(shape, generator=draws, device=device)
        timestep = torch.randint(len(alphas), (settings.unet_batch,), generator=draws, device=device)
        keep = (torch.rand(settings.unet_batch, generator=draws, device=device) >= settings.dropout).float()
        level = alphas[timestep][:, None, None, None]
        with _autocast(device, settings):
            prediction = model(level.sqrt() * latents + (1 - level).sqrt() * noise, timestep, tokens[rows], keep)
        loss = F.mse_loss(prediction.float(), noise)
        _step(optimizer, loss, model, _learning_rate(step, total, settings.learning_rate))
        decay = min(settings.ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        _log("unet", step, total, loss, started, first)
        if (step + 1) % progress.every == 0:
            progress.save("unet", step + 1, modules, optimizer)
    model.load_state_dict(average.state_dict())
    model.eval()


def measure(pipe: Any, settings: Settings, *, steps: int = 20) -> dict[str, dict[str, float]]:
    """Per level: share of right attributes and of pictures with all of them right, on held-out captions."""
    from mmalign.models import generate
    from mmalign.playground.oracle import judge_batch
    from mmalign.playground.scene import held_out_prompts

    results = {}
    for level in LEVELS:
        prompts = settings.judged_prompts if level == "single" else min(100, settings.judged_prompts)
        texts = held_out_prompts(level, prompts, settings.seed)
        pictures = generate(pipe, texts, list(range(len(texts))), steps=steps, guidance_scale=3.0, batch_size=64)
        verdicts = judge_batch(pictures, texts)
        results[level] = {
            "share": float(np.mean([verdict.share for verdict in verdicts])),
            "all_correct": float(np.mean([verdict.all_correct for verdict in verdicts])),
        }
        if level == "single":
            for name in verdicts[0].correct:
                results[level][name] = float(np.mean([verdict.correct[name] for verdict in verdicts]))
    return results


def pretrain(folder: Path, settings: Settings, device: torch.device) -> dict[str, object]:
    """Both phases, then the pipeline folder and ``pretrain.json`` with settings, seconds and quality."""
    started = time.perf_counter()
    torch.manual_seed(settings.seed)
    torch.set_float32_matmul_precision("high")
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(folder / "progress.pt")
    pipe = build_tiny_sdxl()
    pictures, captions = render_dataset(settings.images, settings.seed)
    print(f"rendered {len(captions)} pictures in {time.perf_counter() - started:.0f} s", flush=True)
    pictures = pictures.to(device)
    pipe.vae.to(device)
    vae_file = folder / "vae.pt"
    if vae_file.exists():
        pipe.vae.load_state_dict(torch.load(vae_file, weights_only=True, map_location=device))
        pipe.vae.eval()
    else:
        train_vae(pipe.vae, pictures, settings, progress)
        torch.save(pipe.vae.state_dict(), vae_file)
    moments = encode_dataset(pipe.vae, pictures)
    tokens = pipe.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
    alphas = pipe.scheduler.alphas_cumprod.to(device)
    train_unet(pipe, moments, tokens, alphas, settings, progress)
    seconds = time.perf_counter() - started
    pipe.to(device)
    quality = measure(pipe, settings)
    record = {"settings": asdict(settings), "device": str(device), "seconds": round(seconds), "quality": quality}
    pipe.to(device="cpu", dtype=torch.float16).save_pretrained(folder)
    (folder / "pretrain.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    progress.path.unlink(missing_ok=True)
    vae_file.unlink()
    return record


def main() -> None:
    """Command line: every field of :class:`Settings` is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, default in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    values = vars(parser.parse_args())
    record = pretrain(
        values.pop("out"),
        Settings(**{k: v for k, v in values.items() if k != "device"}),
        torch.device(values["device"]),
    )
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
