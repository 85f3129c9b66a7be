"""Negatives from other pictures: an index of any vision encoder, Re-Align's gate, MIA-DPO's attention-aware choice."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mmalign.corruptions import RetrievalIndex
from mmalign.corruptions.collages import grid, picture_in_picture
from mmalign.data import decode
from mmalign.models.vision_encoder import vision_encoder
from mmalign.models.vlm_encode import Prompt
from mmalign.negatives import Answered, Decoding, Kit, Speaker, generator_of, make_negatives, method_of
from mmalign.negatives.attending import attended, layers_of, tokens_in_boxes, tokens_of_pictures
from mmalign.negatives.generators import Origin
from mmalign.negatives.mia import LIMITS, MIA, share_on_target
from mmalign.negatives.picture_index import digest, index_of
from mmalign.negatives.realign import OWN, ReAlign, own_encoder
from mmalign.training.config import DataConfig
from mmalign.types import ImageBytes, ImagePart, Message, VLMPair
from mmalign.vlm_data import open_source
from tests.vlm.tiny_processors import tiny_processor
from tests.vlm.tiny_vlms import tiny_vlm

RESPONSE = "a large solid red circle on a white background"


def png(seed: int, colour: tuple[int, int, int] | None = None) -> ImageBytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    image = Image.fromarray(pixels) if colour is None else Image.new("RGB", (28, 28), colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return ImageBytes(f"picture {seed}", data=buffer.getvalue())


def rows(number: int = 6) -> list[Answered]:
    asked = (Message("user", (ImagePart(0), "What is it?")),)
    return [Answered(f"row {n}", asked, RESPONSE, (png(n),)) for n in range(number)]


@pytest.fixture(scope="module")
def speakers() -> dict[str, Speaker]:
    made = {}
    for kind in ("llava", "qwen2_5_vl"):
        model: Any = tiny_vlm(kind, dtype=torch.float32)
        made[kind] = Speaker(model, tiny_processor(kind), Decoding(max_new_tokens=6))
    return made


class Brightness:
    """An encoder by which grey pictures are alike when they are as bright."""

    name, fingerprint = "brightness", "b1"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Any) -> torch.Tensor:
        self.seen += len(images)
        levels = torch.tensor([float(np.asarray(image).mean()) for image in images]) / 255
        return torch.stack([torch.cos(levels), torch.sin(levels)], dim=-1)


def greys() -> list[Answered]:
    asked = (Message("user", (ImagePart(0), "What is it?")),)
    levels = (0, 40, 100, 110, 250)
    return [Answered(f"g{n}", asked, RESPONSE, (png(n, (level,) * 3),)) for n, level in enumerate(levels)]


def test_an_index_on_disk_is_read_back_and_refused_where_it_is_stale(tmp_path: Path) -> None:
    index = RetrievalIndex.of(["a", "b", "c"], torch.tensor([[1.0, 0.0], [0.8, 0.2], [0.0, 3.0]]))
    index.save(tmp_path / "index", fingerprint="one", encoder="clip")
    found, told = RetrievalIndex.load(tmp_path / "index", fingerprint="one")
    assert found.keys == index.keys
    assert torch.equal(found.embeddings, index.embeddings)
    assert told == {"encoder": "clip"}
    assert [key for key, _ in found.nearest("a", 2)] == ["b", "c"]
    with pytest.raises(ValueError, match="of other pictures or by another encoder"):
        RetrievalIndex.load(tmp_path / "index", fingerprint="two")
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        RetrievalIndex.load(tmp_path)
    vectors = tmp_path / "index" / "embeddings.safetensors"
    vectors.write_bytes(vectors.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ValueError, match="is not what manifest"):
        RetrievalIndex.load(tmp_path / "index", fingerprint="one")


def test_neighbours_are_those_of_a_plain_search() -> None:
    vectors = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).round()
    vectors[vectors.norm(dim=-1) == 0] = 1.0
    keys = [f"p{n:02}" for n in range(60)]
    index = RetrievalIndex.of(keys, vectors)
    cosines = index.embeddings @ index.embeddings.T
    for own in range(5):
        others = [(keys[n], float(cosines[own, n])) for n in range(60) if n != own and cosines[own, n] < 1 - 1e-6]
        wanted = sorted(others, key=lambda pair: (-pair[1], pair[0]))[:7]
        assert [key for key, _ in index.nearest(keys[own], 7)] == [key for key, _ in wanted]


@pytest.mark.parametrize("kind", ["clip", "dinov2", "open_clip"])
def test_any_vision_encoder_in_a_folder(kind: str, tmp_path: Path) -> None:
    pictures = [decode(png(seed)) for seed in range(3)]
    wanted = _open_clip(tmp_path, pictures) if kind == "open_clip" else _transformers(kind, tmp_path, pictures)
    encoder = vision_encoder(tmp_path)
    found = encoder(pictures)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert found.dtype == torch.float32
    assert len(encoder.fingerprint) == 64
    with pytest.raises(ValueError, match="is no folder of a vision encoder"):
        vision_encoder(tmp_path / "nothing")


@torch.no_grad()
def _transformers(kind: str, folder: Path, pictures: list[Image.Image]) -> torch.Tensor:
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    size: Any = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    processor = transformers.CLIPImageProcessor(**size)
    processor.save_pretrained(folder)
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    if kind == "dinov2":
        model: Any = transformers.Dinov2Model(transformers.Dinov2Config(**small)).eval()
        model.save_pretrained(folder)
        return model(pixels).pooler_output
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**small, "intermediate_size": 8}, projection_dim=5
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    return model.visual_projection(model.vision_model(pixels).pooler_output)


@torch.no_grad()
def _open_clip(folder: Path, pictures: list[Image.Image]) -> torch.Tensor:
    import open_clip
    from safetensors.torch import save_file

    config = {
        "embed_dim": 6,
        "vision_cfg": {"image_size": 28, "layers": 1, "width": 64, "patch_size": 14},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**config).eval()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    told = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(told))
    pixels = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1).float() / 255 for p in pictures])
    return model.encode_image((pixels - 0.5) / 0.5)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_the_models_own_encoder_gives_a_vector_per_picture(kind: str, speakers: dict[str, Speaker]) -> None:
    found = own_encoder(speakers[kind])([decode(png(0)), decode(png(1)), decode(png(0))])
    assert found.ndim == 2
    assert torch.equal(found[0], found[2])
    assert not torch.allclose(found[0], found[1])


def test_an_interrupted_index_goes_on_and_every_picture_is_embedded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmalign.negatives.picture_index.PART", 2)
    monkeypatch.setattr("mmalign.negatives.picture_index.BATCH", 2)
    given = [*greys(), replace(greys()[0], sample_id="copy"), Answered("x", rows(1)[0].prompt, "x", (bad(),))]

    class Stops(Brightness):
        def __call__(self, images: Any) -> torch.Tensor:
            if self.seen >= 4:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        index_of(given, Stops(), tmp_path)
    encoder = Brightness()
    found = index_of(given, encoder, tmp_path)
    assert encoder.seen == 1  # four of five were kept; the copy is no other picture, the broken one is left out
    assert len(found.index.keys) == 5
    assert [digest(picture) for picture, _ in found.nearest(greys()[2].images[0], 2)] == [
        digest(greys()[place].images[0]) for place in (3, 1)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings.safetensors", "manifest.json"]
    again = Brightness()
    index_of(given, again, tmp_path)
    assert again.seen == 0
    with pytest.raises(ValueError, match="of other pictures"):
        index_of(given[:3], again, tmp_path)


def bad() -> ImageBytes:
    return ImageBytes("broken", data=b"no picture")


class Scripted(Speaker):
    """Says what the script has for the picture it is shown, and keeps what it was asked."""

    def __init__(self, speaker: Speaker, script: dict[int, str]) -> None:
        self.model, self.encoder, self.decoding = speaker.model, speaker.encoder, speaker.decoding
        self.script, self.asked = script, []

    def say(self, messages: Any, images: Any, seed: int, **_: Any) -> str:
        self.asked.append(messages[-1].text)
        return self.script[int(np.asarray(images[0]).mean())]


def test_realigns_gate_goes_to_the_next_picture_until_the_text_differs_enough(
    tmp_path: Path, speakers: dict[str, Speaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grey 100's nearest are 110, 40, 0, 250: the first text is the response, the second too much like it."""
    near = RESPONSE.replace("red", "blue")  # cosine of words 0.875... above the limit set below
    far = "two tiny green triangles"
    script = {110: RESPONSE, 40: near, 0: far, 250: "unused"}
    monkeypatch.setattr("mmalign.negatives.realign.own_encoder", lambda speaker: Brightness())
    speaker = Scripted(speakers["llava"], script)
    method = ReAlign(encoder=OWN, most_alike=0.8, vocabulary="playground")
    make = method.open(Kit(greys(), tmp_path, 0, speaker))
    pair = make(greys()[2], 0)
    assert isinstance(pair, VLMPair)
    assert (pair.chosen, pair.rejected) == (RESPONSE, far)
    assert digest(pair.branch_images["retrieved"][0]) == digest(greys()[0].images[0])
    assert (pair.extras["rank"], pair.extras["similarity"]) == (3, 0.0)
    assert pair.extras["masked"] == ["large", "solid", "red", "circle", "white"]
    assert "a [MASK] [MASK] [MASK] [MASK] on a [MASK] background" in speaker.asked[0]
    assert replace(method, k=2).open(Kit(greys(), tmp_path, 0, speaker))(greys()[2], 0) == (
        "none of the 2 most similar pictures gave a text less alike than 0.8"
    )
    plain = replace(greys()[2], response="nothing to mask here")
    assert make(plain, 0) == "the response holds no word of the vocabulary that could be masked"
    for settings, problem in (
        ({"k": 0}, "k=0"),
        ({"encoder": "nowhere"}, "is no folder"),
        ({"fill": "x"}, "must hold"),
    ):
        with pytest.raises(ValueError, match=problem):
            method_of("realign", settings)


def test_realign_with_a_real_model_writes_rows_that_train_with_retrieved_pictures(
    tmp_path: Path, speakers: dict[str, Speaker]
) -> None:
    out = tmp_path / "realign.parquet"
    method = method_of("realign", {"vocabulary": "playground", "index": str(tmp_path / "kept")})
    built = make_negatives("realign", method, rows(3), out, origin=Origin("rows"), speaker=speakers["qwen2_5_vl"])
    assert built.pairs == 3
    for row in open_source(DataConfig(source="auto", path=str(out))):
        assert row.branch_images["retrieved"][0].read() != row.images[0].read()
        assert -1 <= row.extras["retrieved_cosine"][0] <= 1
        assert row.extras["made_by"]["method"] == "realign"
    assert (tmp_path / "kept" / "manifest.json").is_file()


def collaged(speaker: Speaker, images: list[Image.Image]) -> Prompt:
    parts: list[Any] = []
    for number in range(len(images)):
        parts += [ImagePart(number), "\n"]
    return speaker.encoder.prompt((Message("user", (*parts, "In picture 2: what?")),), images, "row")


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_attention_is_that_of_the_real_model_in_that_layer(kind: str, speakers: dict[str, Speaker]) -> None:
    """Against output_attentions of the plain model: the mean over heads and over the places the answer is read off."""
    speaker = speakers[kind]
    images = [decode(png(0)), decode(png(1))]
    told = collaged(speaker, images)
    found = attended(speaker, told, "A cube.", layer=1)
    answer = speaker.encoder.answer(told, "A cube.", "row").input_ids
    ids = torch.cat([told.input_ids, answer])[None]
    plain: Any = tiny_vlm(kind, dtype=torch.float32, attention="eager")
    media = speaker._media(told, [ids[0]])
    with torch.no_grad():
        out = plain(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True, **media)
    start = len(told.input_ids)
    wanted = out.attentions[1][0].mean(0)[start - 1 : start - 1 + len(answer), :start].mean(0)
    torch.testing.assert_close(found.weights, wanted, rtol=0, atol=1e-6)
    most = out.logits[0, start - 1 : start - 1 + len(answer)].log_softmax(-1).amax(-1)
    assert found.perplexity == pytest.approx(float((-most.mean()).exp()), rel=1e-5)
    assert speaker.model.config.text_config._attn_implementation == "sdpa"  # as it was
    groups = tokens_of_pictures(speaker, told, images, "row")
    assert torch.equal(torch.cat(groups), speaker.shown(told).nonzero()[:, 0])
    assert len(groups) == 2
    with pytest.raises(ValueError, match="layer=9 must lie between"):
        attended(speaker, told, "A cube.", layer=9)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_tokens_of_cells_are_those_under_them(kind: str, speakers: dict[str, Speaker]) -> None:
    """Four cells under 4 x 4 tokens: each token in one cell, as many in each, cells in reading order."""
    speaker = speakers[kind]
    collage = grid(decode(png(0)), [decode(png(n)) for n in range(1, 4)], generator_of(0), cell=16).squared()
    told = collaged(speaker, list(collage.images))
    tokens = tokens_of_pictures(speaker, told, collage.images, "row")[0]
    cells = tokens_in_boxes(speaker.model, told, tokens, collage.images[0].size, collage.boxes, "row")
    assert sorted(torch.cat(cells).tolist()) == tokens.tolist()
    assert len({len(cell) for cell in cells}) == 1
    assert [int(cell[0]) for cell in cells] == sorted(int(cell[0]) for cell in cells)
    weights = torch.zeros(len(told.input_ids))
    right = collage.boxes.index(collage.box)
    for number, cell in enumerate(cells):
        weights[cell] = 3.0 if number == right else 1.0
    assert share_on_target(speaker, told, weights, collage, "row") == pytest.approx(0.5)  # 3 / (3 + 1 + 1 + 1)
    inner = picture_in_picture(decode(png(0)), [decode(png(1)).resize((56, 56))], generator_of(0)).squared()
    told = collaged(speaker, list(inner.images))
    even = torch.ones(len(told.input_ids))
    assert share_on_target(speaker, told, even, inner, "row") == pytest.approx(0.25, abs=0.2)


def test_tokens_of_llava_next_are_those_of_the_whole_picture_and_internvls_places_are_not_known() -> None:
    """LLaVA-NeXT puts the whole picture's 4 x 4 tokens before those of its tiles."""
    model: Any = tiny_vlm("llava_next", dtype=torch.float32)
    speaker = Speaker(model, tiny_processor("llava_next"))
    collage = grid(decode(png(0)), [decode(png(n)) for n in range(1, 4)], generator_of(0), cell=28).squared()
    told = collaged(speaker, list(collage.images))
    tokens = tokens_of_pictures(speaker, told, collage.images, "row")[0]
    cells = tokens_in_boxes(model, told, tokens, collage.images[0].size, collage.boxes, "row")
    assert sorted(torch.cat(cells).tolist()) == tokens[:16].tolist()
    assert len(tokens) > 16
    other: Any = tiny_vlm("internvl", dtype=torch.float32)
    with pytest.raises(ValueError, match="row: where the tokens of internvl lie in a picture is not known"):
        tokens_in_boxes(other, told, tokens, collage.images[0].size, collage.boxes, "row")


@pytest.mark.parametrize("kind", ["sequence", "grid", "picture_in_picture"])
def test_mia_keeps_answers_that_looked_elsewhere(kind: str, tmp_path: Path, speakers: dict[str, Speaker]) -> None:
    speaker = speakers["llava"]
    number = 3 if kind == "sequence" else 4 if kind == "grid" else 2
    pictures = None if kind == "picture_in_picture" else number
    make = MIA(kind=kind, pictures=pictures, limit=1.0).open(Kit(rows(), tmp_path, 0, speaker))
    pair = make(rows()[0], 5)
    assert isinstance(pair, VLMPair)
    assert pair.chosen == RESPONSE
    assert len(pair.images) == (3 if kind == "sequence" else 1)
    text = pair.prompt[0].text
    assert text.endswith(f"{pair.extras['pointer']}What is it?")
    own = rows()[0].images[0]
    if kind == "sequence":
        place = int(pair.extras["pointer"].split()[2].rstrip(":")) - 1
        assert decode(pair.images[place]).tobytes() == decode(own).tobytes()
        assert "Picture 1: " in text
    share = pair.extras["attention_share"]
    assert 0 < share < 1
    strict = MIA(kind=kind, pictures=pictures, limit=share / 2).open(Kit(rows(), tmp_path, 0, speaker))
    assert "looked at the right picture" in str(strict(rows()[0], 5))
    sure = MIA(kind=kind, pictures=pictures, limit=1.0, least_perplexity=1e9).open(Kit(rows(), tmp_path, 0, speaker))
    assert "sure of its answer" in str(sure(rows()[0], 5))


def test_what_mia_cannot_augment_is_said(tmp_path: Path, speakers: dict[str, Speaker]) -> None:
    make = MIA(kind="sequence", pictures=5).open(Kit(rows(3), tmp_path, 0, speakers["llava"]))
    assert "2 other pictures were found" in str(make(rows()[0], 0))
    two = replace(rows()[0], images=(png(0), png(1)), prompt=(Message("user", (ImagePart(0), ImagePart(1), "?")),))
    assert "the row has 2 pictures" in str(make(two, 0))
    assert "more than 512 characters" in str(make(replace(rows()[0], response="x" * 600), 0))
    for settings, problem in (
        ({"kind": "spiral"}, "kind='spiral'"),
        ({"kind": "grid", "pictures": 5}, "pictures=5"),
        ({"pictures": 2}, "name a kind"),
        ({"limit": 0.0}, "limit=0.0"),
        ({"noise": 5000}, "step=5000"),
    ):
        with pytest.raises(ValueError, match=problem):
            method_of("mia", settings)
    with pytest.raises(ValueError, match="layer=7 must lie between 0 and 1"):
        MIA(layer=7).open(Kit(rows(), tmp_path, 0, speakers["llava"]))
    assert LIMITS["sequence"] == {2: 0.8, 3: 0.7, 4: 0.6, 5: 0.6}
    assert LIMITS["grid"] == {2: 0.7, 3: 0.6, 4: 0.5, 6: 0.4, 9: 0.3}
    assert len(layers_of(speakers["llava"].model)) == 2


def test_mia_goes_on_after_an_interruption_and_writes_the_same_file(
    tmp_path: Path, speakers: dict[str, Speaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = method_of("mia", {"limit": 1.0})
    origin, speaker = Origin("rows", "tiny"), speakers["qwen2_5_vl"]
    make_negatives("mia", method, rows(4), tmp_path / "whole.parquet", origin=origin, speaker=speaker)
    real, calls = MIA._pair, []

    def stops(self: MIA, row: Answered, kit: Kit, seed: int) -> Any:
        calls.append(row.sample_id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, row, kit, seed)

    monkeypatch.setattr(MIA, "_pair", stops)
    out = tmp_path / "parts.parquet"
    with pytest.raises(KeyboardInterrupt):
        make_negatives("mia", method, rows(4), out, origin=origin, speaker=speaker)
    built = make_negatives("mia", method, rows(4), out, origin=origin, speaker=speaker)
    assert calls == ["row 0", "row 1", "row 2", "row 2", "row 3"]
    made, wanted = (
        [(row.sample_id, row.rejected, [image.read() for image in row.images]) for row in table]
        for table in (
            open_source(DataConfig(source="auto", path=str(path))) for path in (out, tmp_path / "whole.parquet")
        )
    )
    assert made == wanted
    assert built.pairs == len(made)
