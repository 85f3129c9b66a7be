"""CLIPScore, plain CLIP, PickScore, HPSv2 and the aesthetic head: tiny checkpoints through the real path."""

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from PIL import Image
from torch.nn.functional import cosine_similarity

from mmalign.rewards import (
    DifferentiableReward,
    EmbeddingReward,
    RewardModel,
    find_reward,
    installed_rewards,
    score_many,
)
from reward_models.aesthetic import HEAD_FILE, linear_head
from reward_models.pixels import Preprocess
from reward_models.tokens import END, ClipTokens
from tests.rewards.test_reward_pixels import noise
from tests.rewards.tiny_checkpoints import HPS, save_clip, spread, state_hashes, tiny_clip

PROMPTS = ["a red circle", "two blue squares on sand", "a red circle"]
IMAGES = [Image.fromarray(noise(*size, seed=seed)) for seed, size in enumerate([(96, 96), (227, 300), (120, 80)])]


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


@pytest.fixture(scope="module")
def root(tmp_path_factory, clip):
    """A folder laid out as $MMALIGN_REWARDS."""
    folder = tmp_path_factory.mktemp("rewards")
    save_clip(clip, folder / "openai--clip-vit-base-patch32")
    save_clip(clip, folder / "openai--clip-vit-large-patch14", pickled=True)
    save_clip(clip, folder / "yuvalkirstain--PickScore_v1")
    torch.manual_seed(1)
    hps = CLIP(**HPS)
    spread(hps)
    state = {"module." + name: value for name, value in hps.state_dict().items()}
    (folder / "xswu--HPSv2").mkdir()
    for file in ("HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt"):
        torch.save({"epoch": 1, "state_dict": state}, folder / "xswu--HPSv2" / file)
    head = torch.nn.ModuleDict({"layers": linear_head(8)})
    (folder / "christophschuhmann--improved-aesthetic-predictor").mkdir()
    torch.save(head.state_dict(), folder / "christophschuhmann--improved-aesthetic-predictor" / HEAD_FILE)
    for repository in folder.iterdir():
        state_hashes(repository)
    return folder


@pytest.fixture(autouse=True)
def found(root, monkeypatch):
    monkeypatch.setenv("MMALIGN_REWARDS", str(root))


OPTIONS = {"hpsv2": {"architecture": HPS}, "hpsv2.1": {"architecture": HPS}}
NAMES = ["clipscore", "clip-cosine", "clip-cosine-l14", "aesthetic", "pickscore", "hpsv2", "hpsv2.1"]


def load(name, **options):
    return find_reward(name, device="cpu", **OPTIONS.get(name, {}), **options)


def reference(clip, prompts, preprocess, tokens):
    """transformers' own forward: cosines and logits of row i with row i."""
    with torch.no_grad():
        out = clip(input_ids=tokens(prompts), pixel_values=preprocess.pictures(IMAGES))
    return cosine_similarity(out.text_embeds, out.image_embeds), out.logits_per_image.diagonal()


def test_clipscore_is_the_published_formula(clip, tmp_path):
    cosine, _ = reference(clip, ["A photo depicts " + prompt for prompt in PROMPTS], Preprocess(), ClipTokens())
    assert cosine.min() > 0
    torch.testing.assert_close(load("clipscore").score(PROMPTS, IMAGES), 2.5 * cosine)
    opposite = tiny_clip()
    opposite.text_projection.weight.data.neg_()
    folder = save_clip(opposite, tmp_path)
    assert load("clipscore", weights=folder).score(PROMPTS, IMAGES).tolist() == [0, 0, 0]
    torch.testing.assert_close(
        load("clip-cosine", weights=folder).score(PROMPTS, IMAGES), -load("clip-cosine").score(PROMPTS, IMAGES)
    )


@pytest.mark.parametrize("name", ["clip-cosine", "clip-cosine-l14"])
def test_plain_cosine(clip, name):
    cosine, _ = reference(clip, PROMPTS, Preprocess(), ClipTokens())
    torch.testing.assert_close(load(name).score(PROMPTS, IMAGES), cosine)


def test_pickscore_is_the_logit_of_its_clip(clip):
    tokens = ClipTokens(cleaning="transformers", pad=END)
    _, logits = reference(clip, PROMPTS, Preprocess(corner="transformers"), tokens)
    torch.testing.assert_close(load("pickscore").score(PROMPTS, IMAGES), logits)


@pytest.mark.parametrize("antialias", [True, False])
def test_hps_is_the_cosine_of_open_clip_on_letterboxed_pictures(root, antialias):
    model = CLIP(**HPS).eval()
    state = torch.load(root / "xswu--HPSv2" / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    pixels = Preprocess(fit="letterbox", antialias=antialias).pictures(IMAGES)
    with torch.no_grad():
        images, texts, _ = model(pixels, open_clip.get_tokenizer("ViT-H-14")(PROMPTS))
    reward = load("hpsv2.1", antialias=antialias)
    assert reward.version == f"2.1, antialias {'on' if antialias else 'off'}"
    torch.testing.assert_close(reward.score(PROMPTS, IMAGES), (images @ texts.T).diagonal())


def test_aesthetic_is_affine_in_the_unit_embedding(clip, root):
    layers = torch.load(root / "christophschuhmann--improved-aesthetic-predictor" / HEAD_FILE, weights_only=True)
    with torch.no_grad():
        vision = clip.vision_model(pixel_values=Preprocess().pictures(IMAGES)).pooler_output
        rating = clip.visual_projection(vision)
    rating = rating / rating.norm(dim=-1, keepdim=True)
    for layer in (0, 2, 4, 6, 7):
        rating = rating @ layers[f"layers.{layer}.weight"].T + layers[f"layers.{layer}.bias"]
    torch.testing.assert_close(load("aesthetic").score(PROMPTS, IMAGES), rating[:, 0])
    assert torch.equal(load("aesthetic").score(PROMPTS, IMAGES), load("aesthetic").score([""] * 3, IMAGES))


@pytest.mark.parametrize("name", NAMES)
def test_laws_of_a_reward(name):
    assert name in installed_rewards()
    reward = load(name)
    assert isinstance(reward, RewardModel)
    assert isinstance(reward, EmbeddingReward)
    assert isinstance(reward, DifferentiableReward)
    assert reward.name == name
    for text in (reward.scale, reward.version, reward.licence, reward.source):
        assert text
    scores = reward.score(PROMPTS, IMAGES)
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32
    assert len(set(scores.tolist())) == 3
    one_by_one = torch.cat([reward.score([p], [i]) for p, i in zip(PROMPTS, IMAGES, strict=True)])
    torch.testing.assert_close(one_by_one, scores, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(load(name, batch_size=2).score(PROMPTS, IMAGES), scores, atol=2e-5, rtol=1e-5)
    assert reward.score([], []).shape == (0,)
    with pytest.raises(ValueError, match="got 2 prompts and 3 pictures"):
        reward.score(PROMPTS[:2], IMAGES)
    with pytest.raises(ValueError, match="prompts is one string"):
        reward.score("abc", IMAGES)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_pixels_and_nothing_else(name):
    reward = load(name)
    pictures = torch.rand(2, 3, 100, 140, generator=torch.Generator().manual_seed(3)).requires_grad_()
    reward.score_tensor(PROMPTS[:2], pictures).sum().backward()
    assert pictures.grad is not None
    assert pictures.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in reward.towers.model.parameters())


def test_pictures_and_tensors_agree_where_nothing_is_resized():
    images = [Image.fromarray(noise(224, 224, seed=seed)) for seed in range(2)]
    tensors = Preprocess(mean=(0, 0, 0), std=(1, 1, 1)).pictures(images)
    for name in NAMES:
        torch.testing.assert_close(
            load(name).score_tensor(PROMPTS[:2], tensors), load(name).score(PROMPTS[:2], images), atol=2e-5, rtol=1e-5
        )


def test_rewards_on_one_backbone_encode_each_picture_once(monkeypatch):
    from reward_models.clip_towers import ClipTowers

    rewards = [load("aesthetic"), load("clip-cosine-l14"), load("pickscore")]
    assert rewards[0].towers is rewards[1].towers
    alone = {reward.name: reward.score(PROMPTS, IMAGES) for reward in rewards}
    calls, encode = [], ClipTowers.image_features
    monkeypatch.setattr(ClipTowers, "image_features", lambda self, pixels: calls.append(1) or encode(self, pixels))
    together = score_many(rewards, PROMPTS, IMAGES)
    assert len(calls) == 2
    assert together.keys() == alone.keys()
    assert all(torch.equal(together[name], alone[name]) for name in alone)


def test_prompt_limits_count_the_prefix():
    assert load("pickscore").prompt_limit == 75
    assert load("clipscore").prompt_limit == 72
    assert load("aesthetic").prompt_limit is None
    long = ["word " * 72, "word " * 72 + "and something else", "word " * 71]
    scores = load("clipscore").prompt_tokens(long)
    assert scores == [72, 75, 71]
    texts = load("clip-cosine").score(["word " * 75, "word " * 75 + "unseen", "word " * 74], [IMAGES[0]] * 3)
    assert texts[0] == texts[1] != texts[2]


def test_half_precision_stays_near(clip):
    full, half = load("pickscore"), load("pickscore", dtype="bfloat16")
    assert half.towers.dtype == torch.bfloat16
    assert half.score(PROMPTS, IMAGES).dtype == torch.float32
    error = (half.score(PROMPTS, IMAGES) - full.score(PROMPTS, IMAGES)).abs().max()
    assert 0 < error < 0.05 * full.towers.scale
    with pytest.raises(ValueError, match="dtype='int8'; choose float32, bfloat16, float16"):
        load("pickscore", dtype="int8")
