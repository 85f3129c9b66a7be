"""VQAScore and the judge on tiny vision-language models, and the ridge head on a tiny CLIP."""

import pytest
import torch
from PIL import Image

from mmalign.rewards import EmbeddingReward, RewardModel, find_reward, score_many
from reward_models.judge import COMPARE, RATE, Comparison, Judge, parse_verdict
from reward_models.ridge import fit_ridge, load_ridge
from reward_models.vlm import AskedModel
from reward_models.vqascore import QUESTION
from tests.rewards.test_reward_pixels import noise
from tests.rewards.tiny_checkpoints import save_clip, tiny_clip
from tests.vlm.tiny_processors import save_tiny_vlm

PROMPTS = ["a red circle", "two blue squares, on sand", "red"]
IMAGES = [Image.fromarray(noise(*size, seed=seed)) for seed, size in enumerate([(60, 60), (40, 50), (120, 80)])]
KINDS = ["llava", "qwen2_5_vl"]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return save_tiny_vlm(tmp_path_factory.mktemp(request.param) / "tiny", request.param)


def logp_of(asked, question, image, answer):
    """log p of each token of the answer, one row, no padding, one forward a token."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = asked.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    logps = []
    for length in range(len(answer)):
        inputs = asked.processor(text=[text + answer[:length]], images=[[image]], return_tensors="pt")
        with torch.no_grad():
            logits = asked.model(**inputs).logits[0, -1]
        token = asked.tokenizer(answer[length], add_special_tokens=False).input_ids
        logps.append(logits.log_softmax(-1)[token].item())
    return torch.tensor(logps)


def test_vqascore_is_the_chance_of_yes_for_each_picture(folder):
    reward = find_reward("vqascore", weights=folder, device="cpu", batch_size=2)
    assert isinstance(reward, RewardModel)
    expected = [
        logp_of(reward.asked, QUESTION.replace("{}", prompt), image, "Yes").mean().exp()
        for prompt, image in zip(PROMPTS, IMAGES, strict=True)
    ]
    scores = reward.score(PROMPTS, IMAGES)
    torch.testing.assert_close(scores, torch.stack(expected), atol=1e-6, rtol=1e-4)
    assert len(set(scores.tolist())) == 3
    assert reward.score([], []).shape == (0,)
    assert "'Yes'" in reward.version


def test_the_judge_expects_a_rating(folder):
    judge = find_reward("vlm-judge", weights=folder, device="cpu")
    expected = []
    for prompt, image in zip(PROMPTS, IMAGES, strict=True):
        digits = torch.cat([logp_of(judge.asked, RATE.replace("{}", prompt), image, digit) for digit in "12345"])
        expected.append((digits.softmax(-1) * torch.arange(1, 6)).sum())
    torch.testing.assert_close(judge.score(PROMPTS, IMAGES), torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_the_judge_compares_two_pictures_in_one_question(folder):
    judge = find_reward("vlm-judge", weights=folder, device="cpu", batch_size=2)
    answers = judge.asked.answers([COMPARE.replace("{}", PROMPTS[0])] * 2, [IMAGES[:2], IMAGES[1:]], max_tokens=4)
    assert len(answers) == 2
    made = judge.compare(PROMPTS[:1], IMAGES[:1], IMAGES[1:2])
    assert made == Comparison([None], unparsed=2, contradicted=0, first=None), "a random model says nothing"


def test_verdicts_are_read_or_counted():
    assert parse_verdict("Image 1 is better.") == 1
    assert parse_verdict("I think IMAGE 2 is better, since ...") == 0
    assert parse_verdict("Both are equal.") == 0.5
    assert parse_verdict("Image 1 is better. Image 2 is better.") is None
    assert parse_verdict("The first one") is None
    assert parse_verdict("") is None


def scripted(answers):
    """A judge whose model says these things in turn: first the pairs in order, then swapped."""

    class Scripted:
        def answers(self, questions, images, max_tokens=32):
            return [answers.pop(0) for _ in questions]

    judge = Judge.__new__(Judge)
    judge.asked, judge.compare_question, judge.batch_size = Scripted(), COMPARE, 2
    return judge


def test_both_orders_are_averaged_and_a_favourite_place_cancels():
    one, two, both, none = "Image 1 is better.", "Image 2 is better.", "Both are equal.", "Sorry."
    first = [one, one, both, none, none]
    swapped = [two, one, one, two, none]
    made = scripted(first + swapped).compare(["x"] * 5, IMAGES[:1] * 5, IMAGES[1:2] * 5)
    # agreed left; always the first place: a tie; tie and right; only the swapped one, for left; nothing
    assert made.preference == [1.0, 0.5, 0.25, 1.0, None]
    assert made.unparsed == 3
    assert made.contradicted == 1
    assert made.first == 4 / 6


def test_what_the_asked_models_refuse(folder, tmp_path):
    with pytest.raises(ValueError, match="'vqascore' asks a vision-language model of your choice; give its folder"):
        find_reward("vqascore")
    with pytest.raises(ValueError, match=r"has no \{\} where the prompt goes"):
        find_reward("vqascore", weights=folder, question="Is it good?")
    with pytest.raises(ValueError, match=r"it has no config\.json"):
        AskedModel(tmp_path, device="cpu", dtype="float32")


def test_weights_of_another_model_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    place = save_tiny_vlm(tmp_path / "tiny", "llava")
    file = place / "model.safetensors"
    state = load_file(file)
    name = next(name for name in state if "lm_head" in name or "mlp" in name)
    del state[name]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="the weights are not those of the model"):
        AskedModel(place, device="cpu", dtype="float32")


# Ridge


def test_ridge_is_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 6, generator=generator) * torch.tensor([1, 5, 0.1, 2, 1, 0]) + 3
    targets = {"quality": features @ torch.randn(6, generator=generator) + 1, "style": torch.randn(40)}
    head = fit_ridge(features, targets, penalty=0.5)
    scaled = (features.double() - features.double().mean(0)) / features.double().std(0, correction=0).clamp(min=1e-300)
    scaled[:, 5] = 0
    weight = torch.zeros(6, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    goal = torch.stack(list(targets.values()), -1).double()
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=300, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = (scaled @ weight + bias - goal).square().mean(0).sum() + 0.5 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    torch.testing.assert_close(head(features), (scaled @ weight + bias).detach().float(), atol=1e-5, rtol=1e-5)
    exact = fit_ridge(features, targets, penalty=1e-9)(features)[:, 0]
    torch.testing.assert_close(exact, targets["quality"], atol=1e-4, rtol=1e-4)


def test_ridge_refuses_what_has_no_answer():
    features = torch.randn(4, 3)
    for targets, penalty, message in (
        ({}, 1.0, "got no targets"),
        ({"a": torch.zeros(3)}, 1.0, r"each of the 4 rows, got \{'a': 3\}"),
        ({"a": torch.zeros(4)}, 0.0, "penalty=0 must be positive"),
        ({"a": torch.tensor([0, 1, 2, torch.nan])}, 1.0, "must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_ridge(features, targets, penalty=penalty)


def test_a_ridge_head_is_a_reward_on_the_encoders_backbone(tmp_path, monkeypatch):
    save_clip(tiny_clip(), tmp_path / "openai--clip-vit-large-patch14")
    monkeypatch.setenv("MMALIGN_REWARDS", str(tmp_path))
    encoder = find_reward("clip-cosine-l14", device="cpu")
    targets = {"bright": torch.tensor([0.1, 0.5, 0.9]), "busy": torch.tensor([3.0, 1.0, 2.0])}
    head = fit_ridge(encoder.embed(IMAGES), targets, penalty=1e-6, backbone="clip-cosine-l14")
    file = tmp_path / "head.safetensors"
    head.save(file)
    assert load_ridge(file).objectives == ("bright", "busy")
    bright = find_reward("ridge", weights=file, device="cpu")
    busy = find_reward("ridge", weights=file, device="cpu", objective="busy")
    assert isinstance(busy, EmbeddingReward)
    torch.testing.assert_close(bright.score(PROMPTS, IMAGES), targets["bright"], atol=1e-2, rtol=0)
    both = score_many([bright, busy, encoder], PROMPTS, IMAGES)
    assert list(both) == ["ridge", "ridge-busy", "clip-cosine-l14"]
    torch.testing.assert_close(both["ridge-busy"], targets["busy"], atol=1e-2, rtol=0)
    with pytest.raises(ValueError, match="has no objective 'dark'; it has bright, busy"):
        find_reward("ridge", weights=file, objective="dark")
    with pytest.raises(ValueError, match="was fitted on clip-cosine-l14, not on pickscore"):
        find_reward("ridge", weights=file, encoder="pickscore")
