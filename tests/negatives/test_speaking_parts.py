"""What negatives are spoken with: hidden picture tokens, beginnings of several lengths at once, sentences, likeness."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Metaspace

from mmalign.data import decode
from mmalign.negatives import Decoding, Speaker
from mmalign.negatives.masking import hidden_from_attention
from mmalign.negatives.similarity import SentenceEncoder, check_similarity, lexical, similarity_of
from mmalign.negatives.speaking import first_sentence, sentences
from mmalign.types import ImagePart, Message
from tests.vlm.tiny_processors import tiny_processor, tiny_tokenizer
from tests.vlm.tiny_vlms import IMAGE, VISION_END, VISION_START, pictures, tiny_vlm, tokens_of
from tests.vlm.vlm_rows import picture

PROMPT = (Message("user", (ImagePart(0), "what?")),)


def inputs_of(kind: str, model: Any, seed: int) -> dict[str, Any]:
    """A picture between words; the same ids whatever the picture shows."""
    media = pictures(kind, seed=seed)
    shown = [IMAGE] * tokens_of(model, media)
    if kind.startswith("qwen"):
        shown = [VISION_START, *shown, VISION_END]
    ids = torch.tensor([[1, 20, 21, *shown, 30, 31, 32]])
    types = {"mm_token_type_ids": (ids == IMAGE).long()} if kind.startswith("qwen") else {}
    return {"input_ids": ids, **media, **types}


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "idefics3"])
def test_hidden_tokens_of_a_picture_count_for_nothing_and_keep_their_places(kind: str) -> None:
    model = tiny_vlm(kind)
    one, other = (inputs_of(kind, model, seed) for seed in (0, 1))
    hidden = one["input_ids"] == IMAGE

    def logits(given: dict[str, Any], *, hide: bool) -> torch.Tensor:
        with torch.no_grad():
            if not hide:
                return model(**given).logits[0, -3:]
            with hidden_from_attention(model, hidden):
                return model(**given).logits[0, -3:]

    assert not torch.allclose(logits(one, hide=False), logits(other, hide=False))
    torch.testing.assert_close(logits(one, hide=True), logits(other, hide=True))
    assert not torch.allclose(logits(one, hide=True), logits(one, hide=False))
    # Generation with a cache hides them at each step, as a pass over the whole text does.
    with hidden_from_attention(model, hidden):
        said = model.generate(**one, max_new_tokens=4, do_sample=False, eos_token_id=-1)
        whole = {**one, "input_ids": said[:, :-1]}
        if "mm_token_type_ids" in one:
            whole["mm_token_type_ids"] = (said[:, :-1] == IMAGE).long()
        again = model(**whole).logits[0, -4:].argmax(-1)
    assert again.tolist() == said[0, -4:].tolist()
    assert not model.get_submodule("model")._forward_pre_hooks


def test_hidden_tokens_are_those_of_a_4d_mask() -> None:
    model = tiny_vlm("llava")
    given = inputs_of("llava", model, 0)
    hidden = (given["input_ids"] == IMAGE) & (torch.arange(given["input_ids"].shape[1]) % 3 > 0)
    length = hidden.shape[1]
    kept = torch.ones(length, length, dtype=torch.bool).tril() & ~hidden
    kept[torch.arange(length), torch.arange(length)] |= ~kept.any(dim=1)
    mask = torch.zeros(1, 1, length, length, dtype=torch.float64).masked_fill(~kept, torch.finfo(torch.float64).min)
    with torch.no_grad(), hidden_from_attention(model, hidden):
        got = model(**given).logits
    with torch.no_grad():
        expected = model(**given, attention_mask=mask).logits
    torch.testing.assert_close(got[0, -3:], expected[0, -3:])


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_several_beginnings_at_once_are_said_as_one_by_one(kind: str) -> None:
    speaker = Speaker(tiny_vlm(kind), tiny_processor(kind), Decoding(max_new_tokens=6, temperature=0))
    shown, begun = [decode(picture(3))], ("", "it is", "it is a large")
    for hide in (0.0, 0.7):
        alone = [speaker.say_each(PROMPT, shown, 5, (text,), hide=hide)[0] for text in begun]
        assert speaker.say_each(PROMPT, shown, 5, begun, hide=hide) == alone
    with pytest.raises(ValueError, match="M3ID decodes whole responses"):
        speaker.say(PROMPT, shown, 0, begun="it", m3id={})


def test_which_tokens_are_hidden_is_drawn_evenly_among_those_of_the_picture() -> None:
    speaker = Speaker(tiny_vlm("llava"), tiny_processor("llava"))
    told = speaker.encoder.prompt(PROMPT, [decode(picture(3))], "row")
    shown = told.input_ids == IMAGE
    assert torch.equal(speaker.shown(told), shown)
    longer = torch.cat([told.input_ids, torch.tensor([30, 31])])
    drawn = torch.stack([speaker._hidden(told, [told.input_ids, longer], 0.6, seed) for seed in range(200)])
    assert torch.equal(drawn[:, 0, 2:], drawn[:, 1, :-2])  # the same for every beginning, which stand on the right
    assert not drawn[:, 0, 2:][:, ~shown].any()
    share = drawn[:, 0, 2:][:, shown].float().mean(dim=0)
    assert 0.4 < share.min() < share.max() < 0.8
    assert torch.equal(speaker._hidden(told, [told.input_ids], 1.0, 0)[0], shown)


def test_a_continuation_keeps_the_space_that_sentencepiece_drops() -> None:
    words = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "▁a", "▁red", "▁cube", "s"])}
    inner = Tokenizer(models.BPE({**words, "▁": 8}, [], unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), Metaspace()
    speaker = Speaker(tiny_vlm("llava"), tiny_processor("llava"))
    speaker.encoder.tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    head = torch.tensor([words["▁a"], words["▁red"]])
    assert speaker.encoder.tokenizer.decode([words["▁cube"]]) == "cube"
    assert speaker.after(head, torch.tensor([words["▁cube"], words["s"], 2])) == " cubes"
    assert speaker.after(head[:0], torch.tensor([words["▁cube"]])) == "cube"


def test_sentences() -> None:
    text = "It is 3.5 m high. Is it red?  Yes! It is"
    assert sentences(text) == ["It is 3.5 m high.", " Is it red?", "  Yes!", " It is"]
    assert sentences("一只猫。很大") == ["一只猫。", "很大"]
    assert sentences("One. ") == ["One."]
    assert sentences(" ") == []
    assert [first_sentence(text), first_sentence(" no end"), first_sentence(". x")] == [
        "It is 3.5 m high.",
        " no end",
        ".",
    ]


def test_a_sentence_stops_where_it_ends() -> None:
    """The end mark and the space behind it are likely, so the model that could go on for long stops early."""
    model = tiny_vlm("llava", dtype=torch.float32)
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    bias = torch.zeros(128)
    bias[tokenizer.convert_tokens_to_ids([".", " ", "a"])] = 20.0
    model.lm_head.register_forward_hook(lambda _module, _given, out: out + bias)
    speaker = Speaker(model, tiny_processor("llava"), Decoding(max_new_tokens=200))
    said = speaker.say_each(PROMPT, [decode(picture(0))], 1, ("", "b"), sentence=True)
    for text in said:
        assert text.endswith(".")
        assert len(text) < 100
        assert ". " not in text.lstrip()


def test_likeness_by_words_alone() -> None:
    assert lexical("A red cube.", "a RED cube") == pytest.approx(1)
    assert lexical("a red cube", "cube red a") == pytest.approx(1)  # order counts for nothing
    assert lexical("a red cube", "two blue balls") == 0
    assert lexical("a a b", "a c") == pytest.approx(2 / (5**0.5 * 2**0.5))
    assert (lexical("", "."), lexical("", "a")) == (1.0, 0.0)


def test_likeness_by_an_encoder(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "cube"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=12, **sizes)
    transformers.BertModel(config).save_pretrained(tmp_path)
    transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    encoder = similarity_of(str(tmp_path))
    assert isinstance(encoder, SentenceEncoder)
    made = encoder.tokenizer("a red cube", return_tensors="pt")
    with torch.no_grad():
        own = encoder.model(**made).last_hidden_state[0]
        other = encoder.model(**encoder.tokenizer("blue", return_tensors="pt")).last_hidden_state[0]
    expected = torch.nn.functional.cosine_similarity(own.mean(0), other.mean(0), dim=0)
    assert encoder("a red cube", "blue") == pytest.approx(float(expected), abs=1e-5)  # padding counts for nothing
    assert encoder("a red cube", "a red cube") == pytest.approx(1, abs=1e-5)
    assert encoder("a " * 50, "a " * 50) == pytest.approx(1, abs=1e-5)
    (tmp_path / "1_Pooling").mkdir()
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_cls_token": true}')
    first = torch.nn.functional.cosine_similarity(own[0], other[0], dim=0)
    assert similarity_of(str(tmp_path))("a red cube", "blue") == pytest.approx(float(first), abs=1e-5)
    pooling.write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ValueError, match="pools by pooling_mode_max_tokens"):
        check_similarity(str(tmp_path))
    with pytest.raises(ValueError, match="is no folder with a config"):
        check_similarity("all-mpnet")
