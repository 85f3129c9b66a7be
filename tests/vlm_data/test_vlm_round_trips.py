"""Canonical keeps everything; the forms of other tools keep what they can hold, and refuse the rest."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from making_vlm import config, png
from PIL import Image

from mmalign.data import split_by_prompt
from mmalign.types import ImageBytes, ImagePart, Message, TokenWeights, Video, VideoPart, VLMPair
from mmalign.vlm_data import (
    PARQUET_FORMS,
    VLM_WRITERS,
    changed_spans,
    detect_vlm_source,
    open_source,
    open_table,
    table_of,
    weigh_changes,
    with_retrieved,
    write_vlm_canonical,
)

GENERAL = ("trl", "llava", "llama_factory", "ms_swift")  # forms with several turns


def image(seed: int) -> ImageBytes:
    return ImageBytes(f"picture {seed}", data=png(seed))


def row(name: str = "a", **changes: object) -> VLMPair:
    prompt = (
        Message("system", ("Be brief.",)),
        Message("user", (ImagePart(0), "Which? ", ImagePart(1), "\nThis?")),
        Message("assistant", ("That.",)),
        Message("user", ("Why?",)),
    )
    base = VLMPair(name, prompt, "It is red.", "It is blue.", images=(image(0), image(1)), extras={"model": "x"})
    return replace(base, **changes)


def same(one: VLMPair, other: VLMPair) -> None:
    """Equal but for where pictures come from."""
    for name in ("prompt", "chosen", "rejected", "preference", "margin", "user_id", "chosen_weights"):
        assert getattr(one, name) == getattr(other, name), name
    assert [picture.read() for picture in one.pictures] == [picture.read() for picture in other.pictures]


def test_canonical_keeps_everything(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"video")
    video = Video("clip", path=tmp_path / "clip.mp4")
    frames = Video("frames", frames=(image(4), image(5)), fps=2.0)
    rows = [
        row("plain", user_id="u1", margin=0.25),
        row("sides", rejected_images=(image(2), image(1)), branch_images={"retrieved": (image(3),)}),
        row("weights", chosen_weights=TokenWeights(((6, 9, 5.0),)), rejected_weights=TokenWeights(tokens=(1.0, 2.0))),
        row("soft", preference=0.75, extras={"when": (1, 2), "note": None}),
        VLMPair("video", (Message("user", (VideoPart(0), VideoPart(1), "?")),), "a", "b", videos=(video, frames)),
        VLMPair("text", (Message("user", ("?",)),), "a", "b"),
    ]
    path = write_vlm_canonical(table_of(rows), tmp_path / "rows.parquet", provenance={"seed": 3})
    table = open_source(config(path))
    assert table.sample_ids == [one.sample_id for one in rows]
    for one, other in zip(rows, table, strict=True):
        same(one, other)
        assert one.extras == other.extras
    assert [picture.read() for picture in table[1].images_of("rejected")] == [png(2), png(1)]
    assert table[1].branch_images["retrieved"][0].read() == png(3)
    assert table[4].videos[0].path == tmp_path / "clip.mp4"
    assert (table[4].videos[1].fps, len(table[4].videos[1].frames)) == (2.0, 2)
    again = write_vlm_canonical(table, tmp_path / "again.parquet")
    assert [one == other for one, other in zip(open_table(config(again)), table, strict=True)].count(True) >= 1
    assert b'"seed": 3' in pq.read_schema(path).metadata[b"mmalign"]


def test_a_picture_on_both_sides_is_stored_once(tmp_path: Path) -> None:
    path = write_vlm_canonical(
        table_of([row(rejected_images=(image(0), image(1)), branch_images={"retrieved": (image(1),)})]),
        tmp_path / "a.parquet",
    )
    assert len(pq.read_table(path).column("images")[0]) == 2


@pytest.mark.parametrize("form", GENERAL)
def test_forms_of_other_tools_read_back_as_they_were(form: str, tmp_path: Path) -> None:
    rows = [row("a"), row("b", margin=0.5, prompt=(Message("user", ("Look: ", ImagePart(1), ImagePart(0))),))]
    target = tmp_path / ("rows.parquet" if form == "trl" else "out")
    path, left_out = VLM_WRITERS[form](table_of(rows), target)
    table = open_source(config(path))
    assert table.report.source == form
    same(replace(rows[0], user_id=None), table[0])
    back = table[1]
    assert [picture.read() for picture in back.images] == [png(1), png(0)]  # numbered in the order of their marks
    shown = [back.images[part.index].read() for part in back.prompt[0].content if isinstance(part, ImagePart)]
    assert shown == [png(1), png(0)]
    assert left_out == (("model",) if form == "trl" else ())
    if form != "trl":
        assert table[0].extras["model"] == "x"
    with pytest.raises(ValueError, match=r"exists and is not empty|parquet"):
        VLM_WRITERS[form](table_of(rows), target if form != "trl" else tmp_path / "out")


@pytest.mark.parametrize("form", GENERAL)
def test_what_a_form_cannot_hold_is_refused_and_nothing_appears(form: str, tmp_path: Path) -> None:
    for number, bad in enumerate((row(preference=0.5), row(chosen_images=(image(3), image(4))))):
        target = tmp_path / (f"{number}.parquet" if form == "trl" else str(number))
        with pytest.raises(ValueError, match=r"a: (is a tie|has other pictures)"):
            VLM_WRITERS[form](table_of([row("first"), bad]), target)
        assert not [path for path in tmp_path.rglob("*") if path.suffix in (".parquet", ".json", ".jsonl", ".partial")]


def one_turn(name: str = "a", **changes: object) -> VLMPair:
    asked = (Message("user", (ImagePart(0), "Which is it?")),)
    base = VLMPair(name, asked, "It is red.", "It is blue.", images=(image(0),), margin=0.5)
    return replace(base, **changes)


PUBLISHED = [form for form in VLM_WRITERS if form not in GENERAL]


@pytest.mark.parametrize("form", PUBLISHED)
def test_published_forms_read_back_as_they_were(form: str, tmp_path: Path) -> None:
    rows = [one_turn("a"), one_turn("b", images=(image(1),), chosen="Green.", user_id="u1")]
    target = tmp_path / ("rows.parquet" if form in PARQUET_FORMS else "out")
    path, left_out = VLM_WRITERS[form](table_of(rows), target)
    found = detect_vlm_source(str(path))
    assert found is not None
    assert found.source == ("trl" if form == "mm_rlhf" else form)  # nothing but its extras tells MM-RLHF's rows
    back = open_source(config(path, form))
    for one, other in zip(rows, back, strict=True):
        same(one, other)
    assert left_out == ()
    with pytest.raises(ValueError, match="a: is a tie"):
        VLM_WRITERS[form](table_of([one_turn("a", preference=0.5)]), tmp_path / f"tie{target.suffix}")
    if form != "povid":
        turns = (*one_turn().prompt, Message("assistant", ("Red.",)), Message("user", ("Sure?",)))
        more = one_turn(prompt=turns)
        if form == "mdpo":
            path, _ = VLM_WRITERS[form](table_of([more]), tmp_path / "turns")
            same(more, open_source(config(path))[0])
        else:
            with pytest.raises(ValueError, match="a: has 3 turns"):
                VLM_WRITERS[form](table_of([more]), tmp_path / f"turns{target.suffix}")


def test_what_is_special_about_published_forms_is_written_too(tmp_path: Path) -> None:
    retrieved = one_turn(branch_images={"retrieved": (image(7),)})
    path, left_out = VLM_WRITERS["povid"](table_of([retrieved]), tmp_path / "povid")
    assert left_out == ()
    assert open_source(config(path))[0].branch_images["retrieved"][0].read() == png(7)
    _, left_out = VLM_WRITERS["rlaif_v"](table_of([replace(retrieved, extras={"model": "x"})]), tmp_path / "r.parquet")
    assert left_out == ("model", "pictures of @retrieved")
    several = one_turn(
        prompt=(Message("user", ("First: ", ImagePart(1), "second: ", ImagePart(0), "?")),), images=(image(0), image(1))
    )
    path, _ = VLM_WRITERS["mia_dpo"](table_of([several]), tmp_path / "mia")
    assert [picture.read() for picture in open_source(config(path))[0].images] == [png(1), png(0)]
    path, _ = VLM_WRITERS["mm_rlhf"](table_of([several]), tmp_path / "mm")
    assert [picture.read() for picture in open_source(config(path, "mm_rlhf"))[0].images] == [png(1), png(0)]
    (tmp_path / "clip.mp4").write_bytes(b"video")
    clip = Video("clip", path=tmp_path / "clip.mp4")
    seen = VLMPair("v", (Message("user", (VideoPart(0), "What happens?")),), "a", "b", videos=(clip,))
    path, _ = VLM_WRITERS["mm_rlhf"](table_of([seen]), tmp_path / "film")
    back = open_source(config(path))  # a video is MM-RLHF's own
    assert (back.report.source, back[0].videos[0].path) == ("mm_rlhf", tmp_path / "clip.mp4")
    with pytest.raises(ValueError, match="read as other turns"):
        VLM_WRITERS["mdpo"](table_of([one_turn(prompt=(Message("user", ("a USER: b",)),), images=())]), tmp_path / "no")
    with pytest.raises(ValueError, match="has 2 pictures; RLHF-V's form holds one"):
        VLM_WRITERS["rlhf_v"](table_of([several]), tmp_path / "two.parquet")


def test_ms_swift_keeps_pictures_of_the_rejected_side(tmp_path: Path) -> None:
    path, _ = VLM_WRITERS["ms_swift"](table_of([row(rejected_images=(image(2), image(3)))]), tmp_path / "out")
    back = open_source(config(path))[0]
    assert [picture.read() for picture in back.images_of("rejected")] == [png(2), png(3)]


def test_texts_with_a_literal_mark_are_refused_where_they_would_become_one(tmp_path: Path) -> None:
    bad = row(prompt=(Message("user", (ImagePart(0), ImagePart(1), "what does <image> mean?")),))
    with pytest.raises(ValueError, match="a text holds <image>"):
        VLM_WRITERS["llava"](table_of([bad]), tmp_path / "out")


def test_rows_check_themselves() -> None:
    with pytest.raises(ValueError, match="a: the prompt has 2 image marks for 1 images: there is no image 1"):
        row(images=(image(0),))
    with pytest.raises(ValueError, match="chosen has 2 images and rejected 1"):
        row(rejected_images=(image(0),))
    with pytest.raises(ValueError, match="image 2 stands nowhere"):
        row(images=(image(0), image(1), image(2)))
    with pytest.raises(ValueError, match="must answer the user"):
        row(prompt=(Message("assistant", ("x",)),), images=())
    with pytest.raises(ValueError, match="swap the responses"):
        row(preference=0.2)
    with pytest.raises(ValueError, match="end at character 99 of 10"):
        row(chosen_weights=TokenWeights(((5, 99, 2.0),)))
    with pytest.raises(ValueError, match="role='tool'"):
        Message("tool", ("x",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="either a path or frames"):
        Video("v")


def test_weights_of_tokens_from_spans_of_characters() -> None:
    weights = TokenWeights(((6, 9, 5.0),), rest=1.0)
    # "It| is| red|." with the space in front of a word, and an end token without characters
    assert weights.for_tokens([(0, 2), (2, 5), (5, 9), (9, 10), (10, 10)]) == [1.0, 1.0, 5.0, 1.0, 1.0]
    assert TokenWeights(tokens=(2.0, 3.0), rest=0.5).for_tokens([(0, 1), (1, 2), (2, 2)]) == [2.0, 3.0, 0.5]
    with pytest.raises(ValueError, match="2 token weights for 3 tokens"):
        TokenWeights(tokens=(2.0, 3.0)).for_tokens([(0, 1), (1, 2), (2, 3)])
    with pytest.raises(ValueError, match="in order"):
        TokenWeights(((4, 6, 1.0), (2, 3, 1.0)))
    with pytest.raises(ValueError, match="at least 0"):
        TokenWeights(rest=-1.0)


def test_changed_segments_are_weighed() -> None:
    chosen, rejected = "A red cube stands on a table.", "A blue ball stands on a big table."
    spans = changed_spans(chosen, rejected)
    assert [chosen[start:end] for start, end in spans[0]] == ["red cube"]
    assert [rejected[start:end] for start, end in spans[1]] == ["blue ball", "big"]
    weighed = weigh_changes(row(chosen=chosen, rejected=rejected), 5.0)
    assert weighed.rejected_weights == TokenWeights(((2, 11, 5.0), (24, 27, 5.0)))


def test_held_out_rows_share_no_picture_with_the_others() -> None:
    asked = (Message("user", (ImagePart(0), "Describe it.")),)
    rows = [VLMPair(f"{n}", asked, "a", f"b{n}", images=(image(n // 2),)) for n in range(12)]
    train, held_out = split_by_prompt(table_of(rows), 0.5)
    assert len(train) == len(held_out) == 6
    assert not {one.images[0].read() for one in train} & {one.images[0].read() for one in held_out}


def test_rows_bring_their_nearest_other_picture(tmp_path: Path) -> None:
    def flat(level: int, seed: int = 0) -> ImageBytes:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (level, 255 - level, seed)).save(buffer, "PNG")
        return ImageBytes(f"{level}", data=buffer.getvalue())

    def embed(pictures: list[Image.Image]) -> torch.Tensor:
        calls.append(len(pictures))
        return torch.stack([torch.from_numpy(np.array(p)[0, 0, :2].astype(np.float32)) for p in pictures])

    calls: list[int] = []
    asked = (Message("user", (ImagePart(0), "?")),)
    levels = (0, 10, 100, 100, 240)
    rows = [VLMPair(f"{n}", asked, "a", f"b{n}", images=(flat(level),)) for n, level in enumerate(levels)]
    rows.append(VLMPair("text", (Message("user", ("?",)),), "a", "b"))
    table = with_retrieved(table_of(rows), embed, name="first pixel", batch_size=3)
    assert calls == [3, 1]  # four distinct pictures
    found = [row.branch_images["retrieved"][0].origin for row in table[:5]]
    assert found == ["10", "0", "10", "10", "100"]
    assert not table[5].branch_images
    assert table.fingerprint != table_of(rows).fingerprint
    path = write_vlm_canonical(table, tmp_path / "a.parquet")
    back = open_source(config(path))
    assert back[4].branch_images["retrieved"][0].read() == flat(100).data
    second = with_retrieved(table_of(rows), embed, name="first pixel", rank=2)
    assert second[0].branch_images["retrieved"][0].origin == "100"
    with pytest.raises(ValueError, match="k=9"):
        with_retrieved(table_of(rows), embed, name="first pixel", rank=9)
    with pytest.raises(ValueError, match="no row has a picture"):
        with_retrieved(table_of(rows[5:]), embed, name="first pixel")


def test_tables_of_rows_refuse_what_they_cannot_hold() -> None:
    with pytest.raises(ValueError, match="no rows"):
        table_of([])
    with pytest.raises(ValueError, match="'a' is used more than once"):
        table_of([row(), row()])
    assert table_of([row()]).fingerprint != table_of([row(chosen="Else.")]).fingerprint
    assert table_of([row()]).fingerprint != table_of([row(images=(image(0), image(9)))]).fingerprint
