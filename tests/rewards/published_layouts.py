"""Key -> shape of published checkpoints, written down from the published definitions, not from our classes."""

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def transformers_clip(text: int, text_layers: int, image: int, image_layers: int, patch: int, joint: int) -> Shapes:
    """transformers' CLIPModel: openai/clip-vit-*, laion/CLIP-ViT-H-14-laion2B-s32B-b79K, yuvalkirstain/PickScore_v1."""
    shapes: Shapes = {
        "logit_scale": (),
        "text_model.embeddings.token_embedding.weight": (49408, text),
        "text_model.embeddings.position_embedding.weight": (77, text),
        "vision_model.embeddings.class_embedding": (image,),
        "vision_model.embeddings.patch_embedding.weight": (image, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": ((224 // patch) ** 2 + 1, image),
        "text_projection.weight": (joint, text),
        "visual_projection.weight": (joint, image),
        **norm("text_model.final_layer_norm", text),
        **norm("vision_model.pre_layrnorm", image),
        **norm("vision_model.post_layernorm", image),
    }
    for tower, width, layers in (("text", text, text_layers), ("vision", image, image_layers)):
        for layer in range(layers):
            here = f"{tower}_model.encoder.layers.{layer}"
            for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
                shapes |= linear(f"{here}.self_attn.{part}", width, width)
            shapes |= linear(f"{here}.mlp.fc1", width, 4 * width) | linear(f"{here}.mlp.fc2", 4 * width, width)
            shapes |= norm(f"{here}.layer_norm1", width) | norm(f"{here}.layer_norm2", width)
    return shapes


def open_clip_vit(text: int, text_layers: int, image: int, image_layers: int, patch: int, joint: int) -> Shapes:
    """OpenAI's clip package (clip/model.py, MIT) and open_clip: the layout of xswu/HPSv2 and of Social Reward."""
    shapes: Shapes = {
        "logit_scale": (),
        "positional_embedding": (77, text),
        "text_projection": (text, joint),
        "token_embedding.weight": (49408, text),
        **norm("ln_final", text),
        "visual.class_embedding": (image,),
        "visual.positional_embedding": ((224 // patch) ** 2 + 1, image),
        "visual.proj": (image, joint),
        "visual.conv1.weight": (image, 3, patch, patch),
        **norm("visual.ln_pre", image),
        **norm("visual.ln_post", image),
    }
    for tower, width, layers in (("transformer", text, text_layers), ("visual.transformer", image, image_layers)):
        for layer in range(layers):
            here = f"{tower}.resblocks.{layer}"
            shapes |= {f"{here}.attn.in_proj_weight": (3 * width, width), f"{here}.attn.in_proj_bias": (3 * width,)}
            shapes |= linear(f"{here}.attn.out_proj", width, width)
            shapes |= linear(f"{here}.mlp.c_fc", width, 4 * width) | linear(f"{here}.mlp.c_proj", 4 * width, width)
            shapes |= norm(f"{here}.ln_1", width) | norm(f"{here}.ln_2", width)
    return shapes


def hpsv3(hidden: int, layers: int, ffn: int, kv: int, words: int, vision: int, blocks: int) -> Shapes:
    """MizzenAI/HPSv3, hpsv3/model/qwen2vl_trainer.py, on Qwen/Qwen2-VL-7B-Instruct as transformers 4.45 names it."""
    merged = 4 * vision
    shapes: Shapes = {
        "model.embed_tokens.weight": (words, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (words, hidden),
        "visual.patch_embed.proj.weight": (vision, 3, 2, 14, 14),
        **norm("visual.merger.ln_q", vision),
        **linear("visual.merger.mlp.0", merged, merged),
        **linear("visual.merger.mlp.2", merged, hidden),
        **linear("rm_head.0", hidden, 1024),
        **linear("rm_head.3", 1024, 16),
        **linear("rm_head.5", 16, 2),
    }
    for block in range(blocks):
        here = f"visual.blocks.{block}"
        shapes |= norm(f"{here}.norm1", vision) | norm(f"{here}.norm2", vision)
        shapes |= linear(f"{here}.attn.qkv", vision, 3 * vision) | linear(f"{here}.attn.proj", vision, vision)
        shapes |= linear(f"{here}.mlp.fc1", vision, 4 * vision) | linear(f"{here}.mlp.fc2", 4 * vision, vision)
    for layer in range(layers):
        here = f"model.layers.{layer}"
        shapes |= {f"{here}.{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= linear(f"{here}.self_attn.q_proj", hidden, hidden)
        shapes |= linear(f"{here}.self_attn.k_proj", hidden, kv) | linear(f"{here}.self_attn.v_proj", hidden, kv)
        shapes[f"{here}.self_attn.o_proj.weight"] = (hidden, hidden)
        shapes |= {f"{here}.mlp.{name}_proj.weight": (ffn, hidden) for name in ("gate", "up")}
        shapes[f"{here}.mlp.down_proj.weight"] = (hidden, ffn)
    return shapes


def five_linears(prefix: str, width: int) -> Shapes:
    """The head of the aesthetic predictor and of ImageReward, MLP in simple_inference.py and ImageReward.py."""
    sizes = {0: (width, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
    shapes: Shapes = {}
    for layer, (inputs, outputs) in sizes.items():
        shapes |= linear(f"{prefix}layers.{layer}", inputs, outputs)
    return shapes


def imagereward(image: int, image_layers: int, text: int, text_layers: int, words: int, patch: int = 16) -> Shapes:
    """THUDM/ImageReward (Apache-2.0), models/BLIP: vit.py, med.py and blip_pretrain.py."""
    vision = "blip.visual_encoder"
    shapes: Shapes = {
        f"{vision}.cls_token": (1, 1, image),
        f"{vision}.pos_embed": (1, (224 // patch) ** 2 + 1, image),
        f"{vision}.patch_embed.proj.weight": (image, 3, patch, patch),
        f"{vision}.patch_embed.proj.bias": (image,),
        **norm(f"{vision}.norm", image),
    }
    for layer in range(image_layers):
        here = f"{vision}.blocks.{layer}"
        shapes |= norm(f"{here}.norm1", image) | norm(f"{here}.norm2", image)
        shapes |= linear(f"{here}.attn.qkv", image, 3 * image) | linear(f"{here}.attn.proj", image, image)
        shapes |= linear(f"{here}.mlp.fc1", image, 4 * image) | linear(f"{here}.mlp.fc2", 4 * image, image)
    bert = "blip.text_encoder"
    shapes |= {
        f"{bert}.embeddings.position_ids": (1, 512),
        f"{bert}.embeddings.word_embeddings.weight": (words, text),
        f"{bert}.embeddings.position_embeddings.weight": (512, text),
        **norm(f"{bert}.embeddings.LayerNorm", text),
    }
    for layer in range(text_layers):
        here = f"{bert}.encoder.layer.{layer}"
        for attention, source in (("attention", text), ("crossattention", image)):
            shapes |= linear(f"{here}.{attention}.self.query", text, text)
            shapes |= linear(f"{here}.{attention}.self.key", source, text)
            shapes |= linear(f"{here}.{attention}.self.value", source, text)
            shapes |= linear(f"{here}.{attention}.output.dense", text, text)
            shapes |= norm(f"{here}.{attention}.output.LayerNorm", text)
        shapes |= linear(f"{here}.intermediate.dense", text, 4 * text)
        shapes |= linear(f"{here}.output.dense", 4 * text, text) | norm(f"{here}.output.LayerNorm", text)
    shapes |= linear("blip.vision_proj", image, 256) | linear("blip.text_proj", text, 256)
    return shapes | five_linears("mlp.", text)


def mps(clip: Shapes, width: int, layers: int, heads: int) -> Shapes:
    """Kwai-Kolors/MPS, trainer/models/clip_model.py and cross_modeling.py (MIT)."""
    shapes = {f"model.{name}": shape for name, shape in clip.items()}
    shapes["model.text_model.embeddings.position_ids"] = (1, 77)
    inner = heads * 64
    for layer in range(layers):
        cross, own = (f"cross_model.layers.{layer}.{block}.fn" for block in (0, 1))
        shapes |= norm(f"{cross}.norm", width) | norm(f"{own}.norm", width)
        shapes |= {
            f"{cross}.to_q.weight": (inner, width),
            f"{cross}.to_kv.weight": (128, width),
            f"{cross}.to_out.weight": (width, inner),
            f"{cross}.ff.0.weight": (8 * width, width),
            f"{cross}.ff.2.weight": (width, 4 * width),
            f"{own}.rotary_emb.inv_freq": (32,),
            f"{own}.fused_attn_ff_proj.weight": (inner + 64 + 64 + 8 * width, width),
            f"{own}.attn_out.weight": (width, inner),
            f"{own}.ff_out.1.weight": (width, 4 * width),
        }
    return shapes
