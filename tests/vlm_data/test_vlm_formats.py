"""Every published format gives the same row, and what is wrong with a record is named, never replaced."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from making_vlm import RECORDS, config, hub_image, pictures, png, said, turn, write_json, write_parquet

from mmalign.types import ImagePart, Message, VideoPart
from mmalign.vlm_data import VLM_SOURCES, detect_vlm_source, open_source, open_table

ASKED = Message("user", (ImagePart(0), "What is it?"))


@pytest.mark.parametrize("form", RECORDS)
def test_a_record_of_every_format_becomes_the_row(form: str, tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"video")
    name, record = RECORDS[form]
    path = write_json(tmp_path / name, [record])
    found = detect_vlm_source(str(path))
    assert found is not None
    assert found.source == form
    table = open_source(config(path))
    assert (len(table), table.kind, table.report.corrupt) == (1, "vlm_pair", ())
    row = table[0]
    assert (row.chosen, row.rejected) == ("A cube.", "A ball.")
    assert row.prompt_text.endswith("What is in picture 1?" if form == "mia_dpo" else row.prompt[-1].marked_text)
    expected = {"mia_dpo": 2, "video_salmonn": 0}.get(form, 1)
    assert len(row.images) == expected
    if expected:
        assert row.images[0].read() == png(0)
        assert str(tmp_path) not in row.images[0].origin  # an origin is the same on every machine
    assert table[0] == row


def test_what_is_special_about_each_format(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"video")
    rows = {}
    for form, (name, record) in RECORDS.items():
        table = open_source(config(write_json(tmp_path / name, [record]), form))
        rows[form] = table[0]
    assert rows["povid"].branch_images["retrieved"][0].read() == png(1)
    assert rows["povid"].prompt == (ASKED,)
    assert rows["llava"].prompt == (Message("user", ("What is it?", ImagePart(0))),)
    assert rows["mdpo"].prompt == (Message("system", ("A chat between a curious user and an assistant.",)), ASKED)
    assert rows["mm_rlhf"].prompt == (ASKED,)  # no mark: the picture goes first
    assert rows["mm_rlhf"].extras == {"id": "7", "chosen_reason": "right", "ls_factor": 0.5}
    parts = ("Picture 1: ", ImagePart(0), "Picture 2: ", ImagePart(1), "What is in picture 1?")
    assert rows["mia_dpo"].prompt == (Message("user", parts),)
    assert rows["ms_swift"].prompt == (Message("system", ("Be brief.",)), ASKED)
    assert rows["ms_swift"].images_of("chosen")[0].read() == png(0)
    assert rows["ms_swift"].images_of("rejected")[0].read() == png(1)
    video = rows["video_salmonn"]
    assert video.prompt == (Message("user", (VideoPart(0), "What is it?")),)
    assert video.videos[0].path == tmp_path / "clip.mp4"
    assert video.extras == {"audio": "clip.wav", "gold": "A red cube."}


def test_rlaif_v_and_rlhf_v_parquet(tmp_path: Path) -> None:
    texts = {"question": "What is it?", "chosen": "A cube.", "rejected": "A ball."}
    many = [{"ds_name": "x", "image": hub_image(n), **texts, "idx": str(n)} for n in range(5)]
    table = open_source(config(write_parquet(tmp_path / "rlaif.parquet", many)))
    assert table.report.notes[0].startswith("Recognised as rlaif_v")
    assert [row.images[0].read() for row in table] == [png(n) for n in range(5)]
    assert table.blocks == [0, 0, 1, 1, 2]
    assert table[3].extras == {"ds_name": "x", "idx": "3"}
    assert table.sample_ids[4] == "rlaif.parquet:4"
    old = [{"ds_name": "x", "image": hub_image(n), "text": json.dumps(texts), "idx": n} for n in range(2)]
    table = open_source(config(write_parquet(tmp_path / "rlhf.parquet", old)))
    assert table.report.source == "rlhf_v"
    assert (table[1].prompt, table[1].images[0].read()) == ((ASKED,), png(1))


def test_messages_of_the_hub_with_several_pictures_and_turns(tmp_path: Path) -> None:
    content = pa.list_(pa.struct([("index", pa.int64()), ("text", pa.string()), ("type", pa.string())]))
    messages = pa.list_(pa.struct([("content", content), ("role", pa.string())]))

    def message(role: str, *parts: str | int) -> dict:
        said = [{"type": "image", "index": p} if isinstance(p, int) else {"type": "text", "text": p} for p in parts]
        return {"role": role, "content": said}

    record = {
        "images": [hub_image(0), hub_image(1)],
        "prompt": [message("user", 1, 0, "Which is red?"), message("assistant", "The first."), message("user", "Why?")],
        "chosen": [message("assistant", "It is ", "red.")],
        "rejected": [message("assistant", "No idea.")],
    }
    path = write_parquet(tmp_path / "hub.parquet", [record], prompt=messages, chosen=messages, rejected=messages)
    row = open_source(config(path))[0]
    assert row.prompt[0].content == (ImagePart(1), ImagePart(0), "Which is red?")
    assert [message.role for message in row.prompt] == ["user", "assistant", "user"]
    assert (row.chosen, row.rejected) == ("It is red.", "No idea.")


def test_a_prompt_that_is_what_both_conversations_begin_with(tmp_path: Path) -> None:
    pictures(tmp_path)
    sides = {
        side: [said("user", "What is it?"), said("assistant", text)]
        for side, text in (("chosen", "A cube."), ("rejected", "A ball."))
    }
    row = open_source(config(write_json(tmp_path / "a.jsonl", [{"images": ["0.png"], **sides}])))[0]
    assert (row.prompt, row.chosen, row.rejected) == ((ASKED,), "A cube.", "A ball.")


def test_responses_that_are_one_message_each(tmp_path: Path) -> None:
    pictures(tmp_path)
    record = {"images": ["0.png"], "prompt": [said("user", "What is it?")]}
    record |= {"chosen": said("assistant", "A cube."), "rejected": said("assistant", "A ball.")}
    row = open_source(config(write_json(tmp_path / "a.jsonl", [record])))[0]
    assert (row.prompt, row.chosen, row.rejected) == ((ASKED,), "A cube.", "A ball.")


def ratings(*values: str | int) -> dict:
    names = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")
    return {name: {"Rating": str(value), "Rationale": ""} for name, value in zip(names, values, strict=True)}


@pytest.mark.parametrize("stored", ["rows", "columns"])
def test_vlfeedback_pairs_by_the_mean_of_three_ratings(tmp_path: Path, stored: str) -> None:
    pictures(tmp_path)
    rows = [
        {"model": "a", "response": "good", "annotations": ratings(5, 4, 5)},
        {"model": "b", "response": "bad", "annotations": ratings(1, 2, 5)},
        {"model": "c", "response": "also good", "annotations": ratings(4, 5, 5)},
        {"model": "d", "response": "unrated", "annotations": ratings("N/A", 3, 5)},
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    record = {"prompt": "What?", "img_path": "0.png", "completions": rows if stored == "rows" else columns}
    path = write_json(tmp_path / "vlf.jsonl", [record])
    table = open_source(config(path, ties="soft"))
    assert [(row.chosen, row.rejected, row.preference) for row in table] == [
        ("good", "bad", 1.0),
        ("good", "also good", 0.5),
        ("also good", "bad", 1.0),
    ]
    assert table[0].margin == pytest.approx(14 / 3 - 8 / 3)
    assert table.sample_ids[0] == "vlf.jsonl:1/0"
    assert "3 rows come from records with unrated completions" in str(table.report)
    assert len(open_source(config(path))) == 2
    best = open_source(config(path, **{"as": "pairs", "pairs": "best_vs_worst"}))
    assert [(row.chosen, row.rejected) for row in best] == [("good", "bad")]


BAD = [
    ({"images": ["0.png"], "prompt": [said("user", "What?")], "chosen": "", "rejected": "b"}, "chosen='' must be"),
    ({"images": ["0.png"], "prompt": [said("user", "?")], "chosen": "a", "rejected": None}, "rejected=None must be"),
    ({"images": ["http://x.y/0.png"], "prompt": [said("user", "?")], "chosen": "a", "rejected": "b"}, "is an address"),
    (
        {"images": [""], "prompt": [said("user", "?")], "chosen": "a", "rejected": "b"},
        r"images\[0\]='' names no picture",
    ),
    ({"images": [], "prompt": [{"role": "tool", "content": "x"}], "chosen": "a", "rejected": "b"}, "role"),
    (
        {"images": [], "prompt": [said("user", "?")], "chosen": "a", "rejected": "b", "margin": "x"},
        "margin='x' must be",
    ),
    ({"images": ["data:image/png;base64,@@"], "prompt": [said("user", "?")], "chosen": "a", "rejected": "b"}, "base64"),
    (["not an object"], "must be an object"),
    (
        {
            "images": ["0.png"],
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}],
            "chosen": "a",
            "rejected": "b",
        },
        "2 image marks for 1 images",
    ),
]


@pytest.mark.parametrize(("record", "reason"), BAD, ids=range(len(BAD)))
def test_a_broken_record_is_named_and_left_out(record: object, reason: str, tmp_path: Path) -> None:
    pictures(tmp_path)
    good = {"images": ["0.png"], "prompt": [said("user", "What?")], "chosen": "a", "rejected": "b"}
    path = write_json(tmp_path / "rows.jsonl", [good, record, good])
    table = open_table(config(path, "trl"))
    assert table.sample_ids == ["rows.jsonl:1", "rows.jsonl:3"]
    assert table.report.rows == 3
    ((name, why),) = table.report.corrupt
    assert name == "rows.jsonl:2"
    with pytest.raises(ValueError, match=reason):
        raise ValueError(why)
    with pytest.raises(ValueError, match=r"1 of 3 rows cannot be used .*rows\.jsonl:2"):
        open_source(config(path, "trl"))
    assert len(open_source(config(path, "trl", max_corrupt=0.5))) == 2


def test_missing_pictures_and_videos_are_named_before_training(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    rows = [{"image": f"{n}.png", "prompt": "?", "chosen": "a", "rejected": "b"} for n in range(2)]
    rows.append({"video": "gone.mp4", "prompt": "?", "chosen": "a", "rejected": "b"})
    path = write_json(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=r"2 of 3 rows .*rows\.jsonl:2.*1\.png.*file not found.*gone\.mp4"):
        open_source(config(path))
    kept = open_source(config(path, max_corrupt=1.0))
    assert kept.sample_ids == ["rows.jsonl:1"]


def test_earlier_turns_that_differ_are_refused_with_what_to_do(tmp_path: Path) -> None:
    record = {
        "conversations": [turn("human", "a"), turn("gpt", "b"), turn("human", "c"), turn("gpt", "d")],
        "rejected_conversations": [turn("human", "a"), turn("gpt", "x"), turn("human", "c"), turn("gpt", "y")],
    }
    table = open_table(config(write_json(tmp_path / "a.json", [record]), "povid", max_corrupt=1.0))
    assert "turn 1 differs" in table.report.corrupt[0][1]
    assert not len(table)


def test_broken_json_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n{"prompt": \n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: not JSON"):
        open_table(config(tmp_path / "a.jsonl", "trl"))


def test_places_in_json_arrays_count_bytes_not_characters(tmp_path: Path) -> None:
    rows = [{"image": None, "prompt": "Wäs ist 🎲?", "chosen": f"Würfel {n}", "rejected": "Bäll"} for n in range(3)]
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + json.dumps(rows, ensure_ascii=False, indent=2))
    table = open_table(config(path, "trl"))
    assert [row.chosen for row in table] == ["Würfel 0", "Würfel 1", "Würfel 2"]
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="changed since it was indexed"):
        table[2]


def test_settings_and_names_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    path = write_json(tmp_path / RECORDS["trl"][0], [RECORDS["trl"][1]])
    with pytest.raises(ValueError, match=r"'tlr' is no source of VLM rows.*Did you mean 'trl'"):
        open_table(config(path, "tlr"))
    with pytest.raises(ValueError, match=r"data\.split=train has no meaning"):
        open_table(config(path, "trl", split="train"))
    with pytest.raises(ValueError, match=r"data\.pairs=best_vs_worst has no meaning"):
        open_table(config(path, "trl", **{"as": "pairs", "pairs": "best_vs_worst"}))
    with pytest.raises(ValueError, match=r"data\.as=unary has no meaning"):
        open_table(config(path, "trl", **{"as": "unary"}))
    other = write_json(tmp_path / "b.jsonl", [{"prompt": "x", "chosen": "a.png", "rejected": "b.png"}])
    assert detect_vlm_source(str(other)) is None  # rows of an image generator
    assert set(RECORDS) <= set(VLM_SOURCES)


def test_ms_swift_rows_with_several_rejected_answers(tmp_path: Path) -> None:
    record = {"messages": [said("user", "?"), said("assistant", "a")], "rejected_response": ["b", "c"], "margin": 0.5}
    table = open_table(config(write_json(tmp_path / "a.jsonl", [record])))
    assert [(row.rejected, row.margin) for row in table] == [("b", 0.5), ("c", 0.5)]


def test_a_preference_below_one_half_turns_the_row_round(tmp_path: Path) -> None:
    rows = [{"image": "0.png", "prompt": "?", "chosen": "a", "rejected": "b", "preference": 0.25, "margin": -2}]
    rows.append({**rows[0], "preference": 1.5})
    table = open_table(config(write_json(tmp_path / "a.jsonl", rows)))
    assert (table[0].chosen, table[0].rejected, table[0].preference, table[0].margin) == ("b", "a", 0.75, 2)
    assert table.report.soft == 1
    assert table.report.corrupt[0][1] == "preference=1.5 must lie between 0 and 1"


def test_max_rows_and_ties(tmp_path: Path) -> None:
    rows = [
        {"image": "0.png", "prompt": "?", "chosen": "a", "rejected": "b", "preference": p} for p in (1, 0.5, 0.9, 1)
    ]
    path = write_json(tmp_path / "a.jsonl", rows)
    table = open_table(config(path, max_rows=2))
    assert table.sample_ids == ["a.jsonl:1", "a.jsonl:3"]
    assert (table.report.ties, table.report.beyond_max_rows) == (1, 1)
    assert len(open_table(config(path, ties="soft"))) == 4
    with pytest.raises(ValueError, match="tie"):
        open_table(config(path, ties="error"))
