"""Tiny random models in the published key layouts, so that the real loading path runs without the real weights."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TEXT, "image_size": 224, "patch_size": 56}
HPS = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 16, "head_width": 8, "patch_size": 56},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def tiny_clip(seed: int = 0) -> CLIPModel:
    """A CLIP of transformers: 8 wide, CLIP's vocabulary. Weights are wide, so that scores of pictures differ."""
    torch.manual_seed(seed)
    config = CLIPConfig(text_config=dict(TEXT), vision_config=dict(VISION), projection_dim=8)
    config.text_config.eos_token_id = 49407
    model = CLIPModel(config).eval()
    spread(model)
    return model


def spread(module: torch.nn.Module) -> None:
    """Random weights that are large enough for inputs to matter."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
            elif "norm" in name.lower() or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def save_clip(model: CLIPModel, folder: Path, *, pickled: bool = False) -> Path:
    """``config.json`` and weights as on the hub; the older form is a torch file that also holds position_ids."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.to_json_file(folder / "config.json")
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if pickled:
        state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return state_hashes(folder)


def state_hashes(folder: Path) -> Path:
    """Say beside files of published names that their content is another one."""
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("".join(lines))
    return folder
