"""Token ids against transformers' own tokenizer, built from the vocabulary that open_clip carries."""

import json

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTokenizer

from reward_models.tokens import END, ClipTokens

PROMPTS = [
    "a photo of a cat",
    "A  Photo\nof TWO cats,   8k!! it's   the artist's",
    "naïve café, 猫 and emoji 😀 4K",
    "",
    "word " * 100,
    "red-and-blue (masterpiece:1.2), 1girl; <lora:x:0.8>",
]


@pytest.fixture(scope="module")
def transformers_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    known = SimpleTokenizer()
    vocabulary = dict(known.encoder)
    vocabulary["<|startoftext|>"] = vocabulary.pop("<start_of_text>")
    vocabulary["<|endoftext|>"] = vocabulary.pop("<end_of_text>")
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) for pair, _ in sorted(known.bpe_ranks.items(), key=lambda item: item[1])]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def test_ids_are_those_of_transformers(transformers_tokenizer):
    published = transformers_tokenizer(
        PROMPTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    assert torch.equal(ClipTokens(cleaning="transformers", pad=END)(PROMPTS), published)


def test_ids_are_those_of_open_clip():
    assert torch.equal(ClipTokens()(PROMPTS), open_clip.get_tokenizer("ViT-H-14")(PROMPTS))


def test_cleaning_differs_where_it_should():
    entity = ["cats &amp; dogs"]
    assert ClipTokens().lengths(entity) == [3]
    assert ClipTokens(cleaning="transformers").lengths(entity) == [5]


def test_long_prompts_are_cut_after_75_tokens():
    ids = ClipTokens()(["word " * 100])[0]
    assert ClipTokens().lengths(["word " * 100]) == [100]
    assert ids[0] == 49406
    assert ids[76] == END
    assert len(set(ids[1:76].tolist())) == 1
