"""The kohya layout: its names, what diffusers makes of it, and the way back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from lora_cases import BUILDERS, EVERYWHERE, difference, pictures, plain, saved, trained
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import tiny_transformer_flux, tiny_unet_sd15

from mmalign.models import load_aligned, save_aligned
from mmalign.models.convert import export_as
from mmalign.models.kohya import layers_by_key, to_kohya
from mmalign.models.lora_files import read_lora
from mmalign.models.lora_weights import LoRALayer, LoRAWeights, merge, weights_of
from mmalign.models.unet_names import original_names
from mmalign.training.config import LoRAConfig, ModelConfig

# alpha / rank = 2: a power of two is exact however a reader splits it over the factors.
LORA = {"rank": 4, "alpha": 8.0}
SDXL: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 64, 128),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (1, 2, 4),
    "cross_attention_dim": 32,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}


Aligned = Callable[..., Path]
DORA: dict[str, Any] = {"dora": True, "alpha": 10.0}


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Aligned:
    """``aligned(family, **lora)``: a folder with ``base``, what a run of two steps exported as ``aligned``, as
    ``kohya.safetensors``, and the policy's pictures, ``pictures.pt``; made once."""
    made: dict[str, Path] = {}

    def make(family: str, **lora: Any) -> Path:
        config = LoRAConfig(**{**LORA, "targets": EVERYWHERE[family], **lora})
        key = f"{family} {config}"
        if key not in made:
            folder = made[key] = tmp_path_factory.mktemp(family)
            components = trained(family, folder, config)
            save_aligned(components, folder / "aligned", config)
            torch.save(pictures(components.pipe), folder / "pictures.pt")
            export_as(folder / "aligned", base_of(folder), "kohya", folder / "kohya.safetensors")
        return made[key]

    return make


def base_of(folder: Path) -> ModelConfig:
    return ModelConfig(name=str(folder / "base"))


def expected(folder: Path) -> list[bytes]:
    return torch.load(folder / "pictures.pt", weights_only=True)


def loaded(folder: Path, lora: Path | None = None, **options: Any) -> list[bytes]:
    """Pictures of the base model with ``lora``."""
    return pictures(load_aligned(str(folder / "base"), lora, **options))


# --- names


def test_sdxl_has_the_names_of_published_files() -> None:
    """Keys as in files that kohya's scripts wrote for SDXL base (blocks, depths and numbers of it)."""
    with torch.device("meta"):
        names = original_names(UNet2DConditionModel(**SDXL))
    assert len(set(names.values())) == len(names)
    keys = {"lora_unet_" + name.replace(".", "_") for name in names.values()}
    for key in (
        "lora_unet_input_blocks_0_0",
        "lora_unet_input_blocks_3_0_op",
        "lora_unet_input_blocks_4_0_emb_layers_1",
        "lora_unet_input_blocks_4_0_skip_connection",
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_out_0",
        "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
        "lora_unet_label_emb_0_2",
        "lora_unet_middle_block_0_in_layers_2",
        "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_k",
        "lora_unet_middle_block_2_out_layers_3",
        "lora_unet_out_2",
        "lora_unet_output_blocks_0_1_proj_in",
        "lora_unet_output_blocks_2_2_conv",
        "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_v",
        "lora_unet_output_blocks_5_2_conv",
        "lora_unet_output_blocks_8_0_out_layers_3",
        "lora_unet_time_embed_2",
    ):
        assert key in keys


def test_every_layer_with_weights_has_one_name() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL)
    with_weights = {name for name, module in unet.named_modules() if list(module.parameters(recurse=False))}
    assert original_names(unet).keys() == with_weights


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("sd15", "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight"),
        ("sdxl", "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q.lora_down.weight"),
        ("sd3", "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"),
        ("flux", "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"),
    ],
)
def test_layout_of_each_family(aligned: Aligned, family: str, key: str) -> None:
    tensors = load_file(aligned(family) / "kohya.safetensors")
    assert key in tensors
    ends = {name.rsplit(".", 2)[-2] if name.endswith(".weight") else name.rsplit(".", 1)[-1] for name in tensors}
    assert ends == ({"lora_A", "lora_B", "alpha"} if family in ("sd3", "flux") else {"lora_down", "lora_up", "alpha"})
    alphas = [value for name, value in tensors.items() if name.endswith(".alpha")]
    assert len(alphas) == len(tensors) / 3
    assert all(value.shape == () and value.item() == 8.0 for value in alphas)


@pytest.mark.parametrize(
    ("family", "version", "architecture"),
    [
        ("sd15", "sd_v1", "stable-diffusion-v1/lora"),
        ("sdxl", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
        ("sd3", "sd3", "stable-diffusion-3/lora"),
        ("flux", "flux1", "flux-1/lora"),
    ],
)
def test_metadata(aligned: Aligned, family: str, version: str, architecture: str) -> None:
    with safe_open(aligned(family) / "kohya.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "8.0")
    assert (metadata["ss_network_module"], metadata["ss_base_model_version"]) == ("networks.lora", version)
    assert metadata["modelspec.architecture"] == architecture
    assert metadata["ss_v2"] == "False"
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"


# --- plain diffusers reads it


@pytest.mark.parametrize("family", BUILDERS)
def test_plain_diffusers_makes_the_policys_pictures_of_it(aligned: Aligned, family: str) -> None:
    folder = aligned(family)
    pipe, file = plain(folder), folder / "kohya.safetensors"
    assert difference(pictures(pipe), expected(folder)) > 3
    if family == "sd3":
        # Its pipeline refuses alphas in a file (SD3LoraLoaderMixin); its transformer takes them.
        tensors = load_file(file)
        alphas = {name: tensors.pop(name).item() for name in list(tensors) if name.endswith(".alpha")}
        pipe.transformer.load_lora_adapter(tensors, network_alphas=alphas)
    else:
        pipe.load_lora_weights(str(file))
    assert pictures(pipe) == expected(folder)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_plain_diffusers_reads_alphas_and_ranks_that_differ(family: str, tmp_path: Path) -> None:
    components = saved(family, tmp_path)
    unet: Any = components.denoiser
    rows = torch.Generator().manual_seed(0)
    layers = {}
    for number, (name, module) in enumerate(unet.named_modules()):
        if name.endswith(("to_q", "to_v", "to_out.0")):
            rank = 2 + number % 3
            down = torch.randn(rank, module.in_features, generator=rows)
            up = torch.randn(module.out_features, rank, generator=rows) * 0.2
            layers[name] = LoRALayer(down, up, alpha=rank * 2.0 ** (number % 4 - 1))
    save_file(to_kohya(LoRAWeights(layers), unet, components.kind), tmp_path / "mixed.safetensors")
    pipe = plain(tmp_path)
    pipe.load_lora_weights(str(tmp_path / "mixed.safetensors"))
    read = weights_of(pipe.unet).layers
    assert read.keys() == layers.keys()
    for name, layer in layers.items():
        torch.testing.assert_close(
            read[name].scale * read[name].up @ read[name].down, layer.scale * layer.up @ layer.down
        )


# --- and back


@pytest.mark.parametrize("family", BUILDERS)
def test_the_way_back_is_exact(aligned: Aligned, family: str, tmp_path: Path) -> None:
    folder = aligned(family, **DORA)
    file = folder / "kohya.safetensors"
    # A picture may round the other way at a half: the exactness is that of the weights below.
    assert difference(loaded(folder, file), expected(folder)) <= 1
    export_as(file, base_of(folder), "diffusers", tmp_path / "again")
    denoiser = saved(family, folder).denoiser
    first, again = (read_lora(lora, denoiser).layers for lora in (folder / "aligned", tmp_path / "again"))
    assert first.keys() == again.keys()
    for name, layer in first.items():
        other = again[name]
        assert torch.equal(layer.down, other.down)
        assert torch.equal(layer.up, other.up)
        assert layer.alpha == other.alpha
        assert layer.magnitude is not None
        assert other.magnitude is not None
        assert torch.equal(layer.magnitude, other.magnitude)
    pipe = plain(folder)
    pipe.load_lora_weights(str(tmp_path / "again"))
    assert pictures(pipe) == expected(folder)


@pytest.mark.parametrize("family", BUILDERS)
def test_merged_weights_make_the_same_pictures_up_to_rounding(aligned: Aligned, family: str, tmp_path: Path) -> None:
    folder = aligned(family, **DORA)
    export_as(folder, base_of(folder), "merged", tmp_path / "merged")
    assert difference(pictures(load_aligned(str(tmp_path / "merged"))), expected(folder)) <= 1
    assert not (tmp_path / "merged" / "pytorch_lora_weights.safetensors").exists()


def test_the_definition_of_dora_scales(aligned: Aligned, tmp_path: Path) -> None:
    """W' = m * (W + s B A) / |W + s B A| by output rows, retyped, on a linear and a convolutional layer."""
    folder = aligned("sd15", **DORA)
    tensors, base = load_file(folder / "kohya.safetensors"), saved("sd15", folder).denoiser
    changed: Any = saved("sd15", folder).denoiser
    merge(changed, read_lora(folder / "kohya.safetensors", changed))
    for layer in ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"):
        key = "lora_unet_" + layer.replace(".", "_")
        weight: Any = base.get_submodule(layer).weight
        up, down = tensors[f"{key}.lora_up.weight"].flatten(1), tensors[f"{key}.lora_down.weight"].flatten(1)
        total = weight + tensors[f"{key}.alpha"] / down.shape[0] * (up @ down).reshape(weight.shape)
        scale = tensors[f"{key}.dora_scale"]
        assert scale.shape == (weight.shape[0], *[1] * (weight.ndim - 1))
        length = total.flatten(1).norm(dim=1).reshape(scale.shape)
        torch.testing.assert_close(changed.get_submodule(layer).weight, scale * total / length)
        assert not torch.allclose(scale, length)


def test_rslora_becomes_a_plain_alpha(aligned: Aligned) -> None:
    folder = aligned("sd15", rslora=True, rank=4, alpha=6.0)
    tensors = load_file(folder / "kohya.safetensors")
    assert {value.item() for name, value in tensors.items() if name.endswith(".alpha")} == {12.0}
    for lora in ("aligned", "kohya.safetensors"):
        pipe = plain(folder)
        pipe.load_lora_weights(str(folder / lora))
        assert difference(pictures(pipe), expected(folder)) <= 1


def test_modules_in_full_travel_as_differences(aligned: Aligned) -> None:
    folder = aligned("sdxl", targets=["to_q"], train_also=["conv_in", "norm2"])
    file, base = folder / "kohya.safetensors", saved("sdxl", folder).denoiser
    tensors = load_file(file)
    diff = tensors["lora_unet_input_blocks_0_0.diff"]
    assert diff.shape == base.conv_in.weight.shape
    assert diff.abs().max() > 0.01
    assert {"lora_unet_input_blocks_0_0.diff_b", "lora_unet_input_blocks_1_0_out_layers_0.diff"} <= tensors.keys()
    for lora in (file, folder / "aligned"):
        assert difference(loaded(folder, lora), expected(folder)) <= 1
    half = load_aligned(str(folder / "base"), file, lora_scale=0.5).unet.conv_in.weight
    torch.testing.assert_close(half, base.conv_in.weight + 0.5 * diff)
    assert loaded(folder, file, lora_scale=0.0) == pictures(plain(folder))


# --- what is refused

QUERY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.update({"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(())}), "text encoders"),
        (lambda t: t.update({"lora_unet_nowhere.alpha": torch.ones(())}), "names no layer of this model"),
        (lambda t: t.update({f"{QUERY}.hada_w1_a": torch.ones(2, 2)}), "hada_w1_a names no layer"),
        (lambda t: t.pop(f"{QUERY}.lora_up.weight"), "needs both of its factors"),
        (lambda t: t.update({f"{QUERY}.lora_up.weight": torch.ones(3, 4)}), "does not fit UNet2DConditionModel"),
        (lambda t: t.update({f"{QUERY}.dora_scale": torch.ones(1, 16)}), "magnitudes .* of input columns"),
        (lambda t: t.update({f"{QUERY}.diff": torch.ones(3)}), "has no weight of shape"),
        (lambda t: t.clear(), "there is no LoRA for it in the file"),
    ],
)
def test_what_cannot_be_read_is_named(edit: Any, message: str, tmp_path: Path) -> None:
    unet = tiny_unet_sd15()
    layers = {
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q": LoRALayer(torch.ones(4, 16), torch.ones(16, 4), 8)
    }
    tensors = to_kohya(LoRAWeights(layers), unet, "sd")
    edit(tensors)
    save_file(tensors, tmp_path / "changed.safetensors")
    with pytest.raises(ValueError, match=message):
        read_lora(tmp_path / "changed.safetensors", unet)


def test_files_of_other_families_are_refused(aligned: Aligned, tmp_path: Path) -> None:
    folder = aligned("sdxl", **DORA)
    with pytest.raises(ValueError, match=r"do not fit.*give the base model that it was trained on"):
        load_aligned(str(aligned("sd3") / "base"), folder / "kohya.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"not a readable \.safetensors file"):
        load_aligned(str(folder / "base"), tmp_path / "broken.safetensors")


def test_outputs_are_not_overwritten(aligned: Aligned, tmp_path: Path) -> None:
    folder = aligned("sd15", **DORA)
    with pytest.raises(ValueError, match="exists and is not overwritten"):
        export_as(folder / "aligned", base_of(folder), "kohya", folder / "kohya.safetensors")
    with pytest.raises(ValueError, match=r"name it, for example .*folder\.safetensors"):
        export_as(folder / "aligned", base_of(folder), "kohya", tmp_path / "folder")
    with pytest.raises(ValueError, match="has no pytorch_lora_weights"):
        export_as(folder / "base", base_of(folder), "kohya", tmp_path / "other.safetensors")


# --- reading other layouts


def test_keys_of_other_tools_lead_to_the_same_layers() -> None:
    with torch.device("meta"):
        layers = layers_by_key(UNet2DConditionModel(**SDXL))
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    flat = name.replace(".", "_")
    for key in (f"unet.{name}", f"lora_unet_{flat}", f"lycoris_{flat}", f"base_model.model.{name}"):
        assert layers[key] == name
    assert layers["lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"] == name


def test_flux_files_of_kohyas_scripts_have_fused_layers(tmp_path: Path) -> None:
    """``double_blocks_0_img_attn_qkv``: three factors in one, taken apart as sd-scripts' own converter does."""
    transformer = tiny_transformer_flux()
    rows = torch.Generator().manual_seed(0)
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    down, up = torch.randn(4, width, generator=rows), torch.randn(3 * width, 4, generator=rows)
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "fused.safetensors")
    weights = read_lora(tmp_path / "fused.safetensors", transformer)
    assert set(weights.layers) == {f"transformer_blocks.0.attn.to_{part}" for part in "qkv"}
    for number, part in enumerate("qkv"):
        layer = weights.layers[f"transformer_blocks.0.attn.to_{part}"]
        theirs = 2.0 / 4 * up[number * width : (number + 1) * width] @ down
        torch.testing.assert_close(layer.scale * layer.up @ layer.down, theirs)


def test_joined_adapters_are_their_sum() -> None:
    unet: Any = tiny_unet_sd15().requires_grad_(False)
    for name, rank, targets in (("default", 3, ["to_q", "conv1"]), ("second", 2, ["to_q", "to_k"])):
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=5, target_modules=targets, init_lora_weights=False), name)
    unet.set_adapters(["default", "second"])
    both = weights_of(unet)
    alone = [weights_of(unet, [name]).layers for name in ("default", "second")]
    assert both.layers.keys() == alone[0].keys() | alone[1].keys()
    for name, layer in both.layers.items():
        parts = [layers[name] for layers in alone if name in layers]
        assert layer.rank == sum(part.rank for part in parts) == layer.alpha
        total = sum(part.scale * part.up.flatten(1) @ part.down.flatten(1) for part in parts)
        torch.testing.assert_close(layer.up.flatten(1) @ layer.down.flatten(1), total)
