import numpy as np
import pytest
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mmalign.playground.captions import caption, words
from mmalign.playground.scene import LEVELS, sample_scene
from mmalign.playground.tokenizer import BOS_ID, EOS_ID, MAX_LENGTH, PAD_ID, UNK_ID, build_tokenizer

STRANGE = ["a mauve dog, 12 + 3?", "ééé 猫 🙂", "", "<|endoftext|>", "don't"]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


def test_every_word_is_one_token(tokenizer: CLIPTokenizer):
    ids = [tokenizer(word).input_ids for word in words()]
    assert all(row[0] == BOS_ID and row[2] == EOS_ID and len(row) == 3 for row in ids)
    assert len({row[1] for row in ids}) == len(words())
    assert all(row[1] > max(BOS_ID, EOS_ID, UNK_ID, PAD_ID) for row in ids)


@pytest.mark.parametrize("level", LEVELS)
def test_captions_fit_and_read_back(tokenizer: CLIPTokenizer, level: str):
    rng = np.random.default_rng(0)
    for _ in range(50):
        text = caption(sample_scene(rng, level, held_out=None), rng)
        ids = tokenizer(text).input_ids
        assert len(ids) == len(text.split()) + 2 <= 24
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_saved_tokenizer_loads_and_agrees(tokenizer: CLIPTokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    for text in [*words(), *STRANGE, "a large striped red circle on a white background"]:
        assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.model_max_length == MAX_LENGTH
    special = (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id, loaded.pad_token_id)
    assert special == (BOS_ID, EOS_ID, UNK_ID, PAD_ID)


def test_strange_text_is_unknown_but_never_an_error(tokenizer: CLIPTokenizer):
    batch = tokenizer([*STRANGE, "red " * 100], padding="max_length", truncation=True, max_length=MAX_LENGTH)
    assert all(len(row) == MAX_LENGTH for row in batch.input_ids)
    assert all(max(row) < len(tokenizer) for row in batch.input_ids)
    assert UNK_ID in batch.input_ids[1]
    assert batch.input_ids[2] == [BOS_ID, EOS_ID] + [PAD_ID] * (MAX_LENGTH - 2)
    assert batch.input_ids[-1][-1] == EOS_ID


def test_text_encoders_pool_at_the_end_of_the_caption(tokenizer: CLIPTokenizer):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH, bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID,
    )  # fmt: skip
    ids = tokenizer("two red stars", padding="max_length", max_length=MAX_LENGTH, return_tensors="pt").input_ids
    output = CLIPTextModel(config).eval()(ids)
    end = ids[0].tolist().index(EOS_ID)
    assert end == 4
    np.testing.assert_array_equal(output.pooler_output[0].detach(), output.last_hidden_state[0, end].detach())
