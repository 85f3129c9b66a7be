"""ImageReward, MPS and Social Reward: tiny checkpoints in the published layout against the equations, retyped."""

import math
import string

import pytest
import torch
from PIL import Image
from torch.nn import functional

from mmalign.rewards import DifferentiableReward, RewardModel, find_reward
from reward_models.imagereward import MEAN, STD, UNUSED
from reward_models.mps import CONDITION, CONVERT, FILE
from reward_models.pixels import Preprocess
from reward_models.tokens import END, ClipTokens
from tests.rewards import published_layouts as published
from tests.rewards.test_reward_pixels import noise
from tests.rewards.tiny_checkpoints import state_hashes

PROMPTS = ["a red circle", "two blue squares, on sand", "red"]
IMAGES = [Image.fromarray(noise(*size, seed=seed)) for seed, size in enumerate([(96, 96), (227, 300), (120, 80)])]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "circle", "squares", "two", "on", ",", "sand"]
WORDS += [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
VISION = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"patch_size": 56, "image_size": 224, "layer_norm_eps": 1e-6, "hidden_act": "gelu"}
TEXT = {"vocab_size": len(WORDS) + 2, "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 2, "max_position_embeddings": 512, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}


def random_state(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("position_ids"):
            state[name] = torch.arange(shape[-1])[None]
        elif "norm" in name.lower() and name.endswith("weight"):
            state[name] = 1 + 0.1 * torch.randn(shape, generator=generator)
        else:
            state[name] = 0.3 * torch.randn(shape, generator=generator)
    return state


# ImageReward


@pytest.fixture(scope="module")
def imagereward_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagereward")
    state = random_state(published.imagereward(16, 2, 8, 2, len(WORDS) + 2, patch=56))
    (folder / "THUDM--ImageReward").mkdir()
    torch.save(state, folder / "THUDM--ImageReward" / "ImageReward.pt")
    (folder / "google-bert--bert-base-uncased").mkdir()
    (folder / "google-bert--bert-base-uncased" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    state_hashes(folder / "google-bert--bert-base-uncased")
    return folder, state


def imagereward(folder, **options):
    return find_reward("imagereward", weights=folder, device="cpu", vision=VISION, text=TEXT, **options)


def attend(query, key, value, heads, mask=None):
    """softmax(q k' / sqrt(d)) v with [batch, tokens, heads * d]."""
    query, key, value = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key, value))
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None, :], -torch.inf)
    return (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)


def retyped_imagereward(state, ids, mask, pixels):
    def linear(name, inputs):
        return inputs @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, inputs, eps):
        return functional.layer_norm(inputs, inputs.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    vision, bert = "blip.visual_encoder", "blip.text_encoder"
    proj = f"{vision}.patch_embed.proj"
    x = functional.conv2d(pixels, state[f"{proj}.weight"], state[f"{proj}.bias"], stride=56).flatten(2).transpose(1, 2)
    x = torch.cat([state[f"{vision}.cls_token"].expand(len(x), -1, -1), x], 1) + state[f"{vision}.pos_embed"]
    for layer in range(2):
        here = f"{vision}.blocks.{layer}"
        x = x + linear(
            f"{here}.attn.proj", attend(*linear(f"{here}.attn.qkv", norm(f"{here}.norm1", x, 1e-6)).chunk(3, -1), 2)
        )
        x = x + linear(f"{here}.mlp.fc2", functional.gelu(linear(f"{here}.mlp.fc1", norm(f"{here}.norm2", x, 1e-6))))
    x = norm(f"{vision}.norm", x, 1e-6)
    embeddings = f"{bert}.embeddings"
    h = state[f"{embeddings}.word_embeddings.weight"][ids] + state[f"{embeddings}.position_embeddings.weight"][:35]
    h = norm(f"{embeddings}.LayerNorm", h, 1e-12)
    for layer in range(2):
        here = f"{bert}.encoder.layer.{layer}"
        for name, source, seen in (("attention", None, mask.bool()), ("crossattention", x, None)):
            source = h if source is None else source
            parts = (
                linear(f"{here}.{name}.self.query", h),
                *(linear(f"{here}.{name}.self.{part}", source) for part in ("key", "value")),
            )
            out = linear(f"{here}.{name}.output.dense", attend(*parts, 2, seen))
            h = norm(f"{here}.{name}.output.LayerNorm", out + h, 1e-12)
        out = linear(f"{here}.output.dense", functional.gelu(linear(f"{here}.intermediate.dense", h)))
        h = norm(f"{here}.output.LayerNorm", out + h, 1e-12)
    y = h[:, 0]
    for layer in (0, 2, 4, 6, 7):
        y = linear(f"mlp.layers.{layer}", y)
    return (y[:, 0] - MEAN) / STD


def test_imagereward_is_the_published_network(imagereward_files):
    folder, state = imagereward_files
    reward = imagereward(folder)
    ids, mask = reward.tokens(PROMPTS)
    assert ids.shape == (3, 35)
    assert [WORDS[index] for index in ids[0, :6]] == ["[CLS]", "a", "red", "circle", "[SEP]", "[PAD]"]
    expected = retyped_imagereward(state, ids, mask, Preprocess().pictures(IMAGES))
    torch.testing.assert_close(reward.score(PROMPTS, IMAGES), expected, atol=1e-4, rtol=1e-4)


def test_imagereward_reads_33_tokens(imagereward_files):
    reward = imagereward(imagereward_files[0])
    long = ["red " * 33, "red " * 33 + "blue", "red " * 32]
    scores = reward.score(long, [IMAGES[0]] * 3)
    assert scores[0] == scores[1] != scores[2]
    assert reward.prompt_tokens(long) == [33, 34, 32]
    assert reward.prompt_limit == 33


def test_imagereward_refuses_other_weights(imagereward_files, tmp_path):
    folder, state = imagereward_files
    state = {name: value for name, value in state.items() if not name.startswith(UNUSED)}
    state["blip.text_encoder.pooler.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "ImageReward.pt")
    vocabulary = folder / "google-bert--bert-base-uncased"
    with pytest.raises(ValueError, match=r"1 unexpected \(text.pooler.weight\)"):
        find_reward("imagereward", weights=tmp_path, vocabulary=vocabulary, vision=VISION, text=TEXT)


# MPS

CLIP_8 = published.transformers_clip(16, 2, 16, 2, 56, 8)
ARCHITECTURE = {
    "projection_dim": 8,
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "gelu",
        "eos_token_id": END,
    },
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "gelu",
        "image_size": 224,
        "patch_size": 56,
    },
}


@pytest.fixture(scope="module")
def mps_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mps")
    state = random_state(published.mps(CLIP_8, width=8, layers=2, heads=2), seed=4)
    for name in state:
        if name.endswith("inv_freq"):
            state[name] = 1.0 / (10000 ** (torch.arange(0, 64, 2).float() / 64))
        if name.startswith("cross_model") and name.endswith("norm.bias"):
            state[name] = torch.zeros_like(state[name])
    torch.save(state, folder / FILE)
    return folder, state


def mps(folder, **options):
    sizes = {"architecture": ARCHITECTURE, "layers": 2, "heads": 2}
    return find_reward("mps", weights=folder, device="cpu", **sizes, **options)


def retyped_mps(reward, state, prompts, images, threshold, per_sample=True):
    """clip_model.py and cross_modeling.py as equations; the CLIP inside is transformers' own."""
    clip = reward.network.model
    tokens = ClipTokens(cleaning="transformers", pad=END)

    def texts(lines):
        out = clip.text_model(input_ids=tokens(lines))
        return clip.text_projection(out.last_hidden_state), clip.text_projection(out.pooler_output)

    words, text = texts(prompts)
    condition, _ = texts([CONDITION] * len(prompts))
    similar = torch.einsum("bid,bjd->bij", words, condition).max(-1).values
    similar = similar / (similar.max(-1, keepdim=True).values if per_sample else similar.max())
    mask = torch.where(similar > threshold, 0, -torch.inf)[:, None, None, :]
    pixels = Preprocess(corner="transformers").pictures(images)
    x = clip.visual_projection(clip.vision_model(pixel_values=pixels).last_hidden_state)
    positions = torch.arange(x.shape[1])[:, None] * state["cross_model.layers.0.1.fn.rotary_emb.inv_freq"]
    positions = torch.cat([positions, positions], -1)

    def rotate(t):
        half = torch.cat([-t[..., 32:], t[..., :32]], -1)
        return t * positions.cos() + half * positions.sin()

    def swiglu(t):
        value, gate = t.chunk(2, -1)
        return value * gate * torch.sigmoid(gate)

    for layer in range(2):
        w = {n: state[f"cross_model.layers.{layer}.{n}.weight"] for n in ("0.fn.norm", "0.fn.to_q", "0.fn.to_kv")}
        w |= {n: state[f"cross_model.layers.{layer}.{n}.weight"] for n in ("0.fn.to_out", "0.fn.ff.0", "0.fn.ff.2")}
        names = ("1.fn.norm", "1.fn.fused_attn_ff_proj", "1.fn.attn_out", "1.fn.ff_out.1")
        w |= {n: state[f"cross_model.layers.{layer}.{n}.weight"] for n in names}
        n = functional.layer_norm(x, (8,), w["0.fn.norm"])
        q = (n @ w["0.fn.to_q"].T).unflatten(-1, (2, 64)).transpose(1, 2) / 8
        k, v = (words @ w["0.fn.to_kv"].T).chunk(2, -1)
        attention = (torch.einsum("bhid,bjd->bhij", q, k) + mask).softmax(-1)
        out = torch.einsum("bhij,bjd->bhid", attention, v).transpose(1, 2).flatten(2) @ w["0.fn.to_out"].T
        x = x + out + swiglu(n @ w["0.fn.ff.0"].T) @ w["0.fn.ff.2"].T
        n = functional.layer_norm(x, (8,), w["1.fn.norm"])
        q, k, v, ff = (n @ w["1.fn.fused_attn_ff_proj"].T).split((128, 64, 64, 64), -1)
        q = rotate(q.unflatten(-1, (2, 64)).transpose(1, 2)) / 8
        attention = torch.einsum("bhid,bjd->bhij", q, rotate(k)).softmax(-1)
        out = torch.einsum("bhij,bjd->bhid", attention, v).transpose(1, 2).flatten(2) @ w["1.fn.attn_out"].T
        x = x + out + swiglu(ff) @ w["1.fn.ff_out.1"].T
    return clip.logit_scale.exp() * functional.cosine_similarity(text, x[:, 0])


@pytest.mark.parametrize("threshold", [0.01, 0.3])
@pytest.mark.parametrize("maximum", ["prompt", "batch"])
def test_mps_is_the_published_network(mps_files, threshold, maximum):
    folder, state = mps_files
    reward = mps(folder, threshold=threshold, maximum=maximum)
    with torch.no_grad():
        expected = retyped_mps(reward, state, PROMPTS, IMAGES, threshold, per_sample=maximum == "prompt")
    torch.testing.assert_close(reward.score(PROMPTS, IMAGES), expected, atol=1e-4, rtol=1e-4)


def test_a_score_of_mps_does_not_depend_on_its_batch_unless_asked(mps_files):
    reward, official = mps(mps_files[0], threshold=0.9), mps(mps_files[0], threshold=0.9, maximum="batch")
    alone = torch.cat([reward.score([p], [i]) for p, i in zip(PROMPTS, IMAGES, strict=True)])
    torch.testing.assert_close(reward.score(PROMPTS, IMAGES), alone, atol=1e-5, rtol=1e-5)
    one_by_one = torch.cat([official.score([p], [i]) for p, i in zip(PROMPTS, IMAGES, strict=True)])
    torch.testing.assert_close(one_by_one, alone, atol=1e-5, rtol=1e-5)
    words, _ = official.network.words(official.tokens(PROMPTS))
    assert not torch.equal(official.seen(words), reward.seen(words))
    assert "maximum of the batch" in official.version
    with pytest.raises(ValueError, match="maximum='global'; choose prompt"):
        mps(mps_files[0], maximum="global")


class Whole(torch.nn.Module):
    """A module with these weights, pickled whole as the published one is."""

    def __init__(self, state):
        super().__init__()
        for name, value in state.items():
            *parents, leaf = name.split(".")
            place = self
            for parent in parents:
                if parent not in dict(place.named_children()):
                    place.add_module(parent, torch.nn.Module())
                place = place.get_submodule(parent)
            place.register_buffer(leaf, value)


def test_mps_as_published_is_refused_and_its_conversion_is_read(mps_files, tmp_path, monkeypatch):
    folder, state = mps_files
    torch.save(Whole(state), tmp_path / "MPS_overall_checkpoint.pth")
    with pytest.raises(ValueError, match="does not hold plain tensors") as told:
        mps(tmp_path / "MPS_overall_checkpoint.pth")
    assert CONVERT in str(told.value)
    monkeypatch.chdir(tmp_path)
    exec(CONVERT.partition("on the path: ")[2], {"torch": torch})
    converted = mps(tmp_path)
    assert torch.equal(converted.score(PROMPTS, IMAGES), mps(folder).score(PROMPTS, IMAGES))


# Social Reward


def test_social_reward_is_the_cosine_of_openais_layout(tmp_path):
    from open_clip.model import CLIP

    sizes = {"embed_dim": 8, "quick_gelu": True}
    sizes |= {"vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "head_width": 64, "patch_size": 56}}
    sizes |= {"text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}}
    state = random_state(published.open_clip_vit(16, 2, 64, 2, 56, 8))
    torch.save(state, tmp_path / "mine.pt")
    reward = find_reward("social-reward", weights=tmp_path / "mine.pt", device="cpu", architecture=sizes)
    clip = CLIP(**sizes).eval()
    clip.load_state_dict(state)
    with torch.no_grad():
        images, texts, _ = clip(Preprocess().pictures(IMAGES), ClipTokens()(PROMPTS))
    torch.testing.assert_close(reward.score(PROMPTS, IMAGES), (images * texts).sum(-1))
    with pytest.raises(ValueError, match="its authors publish no weights"):
        find_reward("social-reward", device="cpu", architecture=sizes)


@pytest.mark.parametrize("name", ["imagereward", "mps"])
def test_laws(name, imagereward_files, mps_files):
    reward = imagereward(imagereward_files[0]) if name == "imagereward" else mps(mps_files[0])
    assert isinstance(reward, RewardModel)
    assert isinstance(reward, DifferentiableReward)
    scores = reward.score(PROMPTS, IMAGES)
    assert scores.shape == (3,)
    assert len(set(scores.tolist())) == 3
    reward.batch_size = 2
    torch.testing.assert_close(reward.score(PROMPTS, IMAGES), scores, atol=2e-5, rtol=1e-5)
    assert reward.score([], []).shape == (0,)
    tensors = Preprocess(mean=(0, 0, 0), std=(1, 1, 1)).pictures(IMAGES).requires_grad_()
    direct = reward.score_tensor(PROMPTS, tensors)
    direct.sum().backward()
    assert tensors.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in reward.network.parameters())
