"""Rows with videos: which frames are shown, that a frame corruption is a branch, and what flips and rows lack."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.corruptions import corrupt_video
from mmalign.training.config import Config
from mmalign.training.log import Log
from mmalign.training.run import train
from mmalign.training.task import TRAIN, RowKey
from mmalign.training.vlm_data import VLMData, open_vlm_data
from mmalign.training.vlms import VLMTask, checked_vlm_objective
from mmalign.types import ImageBytes, ImagePart, Message, Video, VideoPart, VLMPair
from mmalign.vlm_data import table_of
from mmalign.vlm_data.clips import clip_of, spread
from tests.vlm.tiny_processors import save_tiny_vlm
from tests.vlm.vlm_rows import config_of, pairs, picture, write_rows

REVERSED = [{"loss": "dpo", "beta": 0.1}, {"loss": "dpo", "rejected": "chosen@frame_reverse", "beta": 0.1}]


def film(seed: int, frames: int = 6) -> Video:
    return Video(f"film {seed}", frames=tuple(picture(100 * seed + n) for n in range(frames)), fps=3.0)


def video_rows() -> list[VLMPair]:
    asked = (Message("user", (VideoPart(0), "What happens?")),)
    rows = [VLMPair(f"v{n}", asked, "It falls.", "It rises.", videos=(film(n),)) for n in range(4)]
    return [*rows, *pairs(2)]  # rows with pictures stand beside them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("videos")
    save_tiny_vlm(made / "model", "qwen2_5_vl")
    write_rows(made, video_rows())
    return made


def task_of(config: Config, rows: list[VLMPair]) -> VLMTask:
    task = VLMTask.from_config(config, VLMData({TRAIN: table_of(rows)}, "rows"))
    task.prepare(torch.device("cpu"))
    return task


def pixels(task: VLMTask, key: RowKey, branch: str) -> torch.Tensor:
    item = task.load(key)
    assert not item.unusable, item.unusable
    return item.contexts[item.responses[branch].context].media["pixel_values_videos"]


def test_a_canonical_row_with_a_video_trains_with_its_frames_reversed(folder: Path, tmp_path: Path) -> None:
    """A real Qwen2.5-VL: log 2 per term at step 0, then the loss moves; the row of a picture lacks that branch."""
    config = config_of(folder, objective=REVERSED, output=str(tmp_path / "run"), vlm={"frames": 4, "max_length": 512})
    data = open_vlm_data(config, checked_vlm_objective(config))
    assert "2 of 6 rows have no chosen@frame_reverse: they show no video." in data.report
    result = train(config)
    log = Log(None)
    log.rewind(result.folder / "log.jsonl", step=2)
    assert log.training[0]["loss"] == pytest.approx(2 * math.log(2))
    assert log.training[1]["loss"] != pytest.approx(2 * math.log(2))


def test_the_frames_that_the_model_gets(folder: Path) -> None:
    task = task_of(config_of(folder, objective=REVERSED, vlm={"frames": 4, "max_length": 512}), video_rows())
    key = RowKey(TRAIN, 0, 7)
    item = task.load(key)
    media = item.contexts[0].media
    assert media["video_grid_thw"].tolist() == [[2, 8, 10]]  # 4 frames in pairs, patches of 4 of 40 x 32 pixels
    assert media["second_per_grid_ts"].tolist() == [pytest.approx(1.0)]  # 4 of 6 frames at 3 a second are 2 a second
    shown = pixels(task, key, "chosen").reshape(2, 80, 3, 2, 16)  # time, patches, colours, frames of a pair, pixels
    backwards = pixels(task, key, "chosen@frame_reverse").reshape(2, 80, 3, 2, 16)
    torch.testing.assert_close(backwards, shown.flip(0).flip(3), rtol=0, atol=0)
    assert item.responses["rejected"].context == item.responses["chosen"].context
    with torch.no_grad():
        scores = task.score(task.policy, task.collate([task.load(RowKey(TRAIN, n, n)) for n in range(6)]))
    assert scores.present["chosen@frame_reverse"].tolist() == [True] * 4 + [False] * 2
    assert scores["chosen@frame_reverse"].logratio.abs().max() == 0
    assert (scores["chosen@frame_reverse"].logp - scores["chosen"].logp)[:4].abs().min() > 0


def test_what_is_drawn_follows_from_seed_sample_and_epoch_alone(folder: Path) -> None:
    objective = [{"loss": "dpo", "rejected": "chosen@noise", "beta": 0.1}]
    config = config_of(folder, objective=objective)
    rows = video_rows()
    task, turned = task_of(config, rows), task_of(config, rows[::-1])
    there = pixels(task, RowKey(TRAIN, 0, 7), "chosen@noise")
    torch.testing.assert_close(pixels(turned, RowKey(TRAIN, 5, 8), "chosen@noise"), there, rtol=0, atol=0)
    assert not torch.equal(pixels(task, RowKey(TRAIN, 0, 7, epoch=1), "chosen@noise"), there)
    other = task_of(config_of(folder, objective=objective, training={"seed": 1}), rows)
    assert not torch.equal(pixels(other, RowKey(TRAIN, 0, 7), "chosen@noise"), there)


def test_corruptions_of_pictures_change_every_frame_alike() -> None:
    frames = [Image.new("RGB", (20, 16), (10 * n, 100, 50)) for n in range(3)]
    changed = corrupt_video(frames, "noise", torch.Generator().manual_seed(0), step=300)
    added = [np.asarray(frame, np.int64)[..., 1:] for frame in changed]  # two colours are the same in all frames
    assert (added[0] == added[1]).all()
    assert (added[0] == added[2]).all()
    assert changed[0].tobytes() != frames[0].tobytes()


@pytest.mark.parametrize(
    ("branch", "corruptions", "problem"),
    [
        ("chosen@frame_drop", {"frame_drop": {"patch": 3}}, "frame_drop has no parameter 'patch'"),
        ("chosen@frame_melt", {}, "'frame_melt' is no corruption"),
        ("chosen@crop", {"crop": {"otherwise": "blur"}}, "otherwise would be ignored"),
        ("chosen@flip", {"flip": {"otherwise": "flip"}}, "must be another corruption than flip"),
        ("chosen@flip", {"flip": {"otherwise": {"step": 3}}}, "names no corruption"),
        ("chosen@flip", {"flip": {"otherwise": {"corruption": "noise", "step": 3000}}}, "step=3000"),
    ],
)
def test_settings_of_branches_that_cannot_be_made(folder: Path, branch: str, corruptions: Any, problem: str) -> None:
    objective = [{"loss": "dpo", "rejected": branch, "beta": 0.1}]
    with pytest.raises(ValueError, match=problem):
        checked_vlm_objective(config_of(folder, objective=objective, vlm={"corruptions": corruptions}))


def told(n: int, response: str) -> VLMPair:
    question = (Message("user", (ImagePart(0), "Describe it.")),)
    return VLMPair(f"t{n}", question, response, "No.", (picture(n),))


def test_a_flip_counts_only_where_the_text_tells_sides(folder: Path, tmp_path: Path) -> None:
    rows = [told(0, "A dog to the left of a cat."), told(1, "A dog and a cat."), told(2, "A cat, right of a dog.")]
    objective = [{"loss": "dpo", "rejected": "chosen@flip", "beta": 0.1}]
    write_rows(tmp_path, rows)
    config = config_of(tmp_path, model={"name": str(folder / "model")}, objective=objective)
    data = open_vlm_data(config, checked_vlm_objective(config))
    assert "1 of 3 rows have no chosen@flip: they do not tell left from right" in data.report
    items = [task_of(config, rows).load(RowKey(TRAIN, n, 0)) for n in range(3)]
    assert [sorted(item.responses) for item in items] == [
        ["chosen", "chosen@flip"],
        ["chosen"],
        ["chosen", "chosen@flip"],
    ]
    corruptions = {"flip": {"otherwise": {"corruption": "blur", "radius": 4.0}}}
    instead = config_of(
        tmp_path, model={"name": str(folder / "model")}, objective=objective, vlm={"corruptions": corruptions}
    )
    assert "no chosen@flip" not in open_vlm_data(instead, checked_vlm_objective(instead)).report
    item, blurred = (
        task_of(at, rows).load(RowKey(TRAIN, 1, 0))
        for at in (
            instead,
            config_of(
                tmp_path,
                model={"name": str(folder / "model")},
                objective=[{"loss": "dpo", "rejected": "chosen@blur", "beta": 0.1}],
                vlm={"corruptions": {"blur": {"radius": 4.0}}},
            ),
        )
    )
    assert torch.equal(item.contexts[1].media["pixel_values"], blurred.contexts[1].media["pixel_values"])
    write_rows(tmp_path, rows[1:2])
    with pytest.raises(ValueError, match="no row has chosen@flip"):
        open_vlm_data(config, checked_vlm_objective(config))


def test_frames_are_spread_over_the_whole_video(tmp_path: Path) -> None:
    assert spread(10, 4) == [0, 3, 6, 9]
    assert (spread(3, 8), spread(9, 1)) == ([0, 1, 2], [4])
    shown = clip_of(film(1), 3)
    assert shown.fps == pytest.approx(1.5)
    assert [frame.tobytes() for frame in shown.frames] == [
        clip_of(film(1), 6).frames[place].tobytes() for place in (0, 2, 5)
    ]
    colours = [Image.new("RGB", (16, 12), (20 * n, 0, 0)) for n in range(5)]
    path = tmp_path / "five.gif"
    colours[0].save(path, save_all=True, append_images=colours[1:], duration=250)
    shown = clip_of(Video("five", path=path), 3)
    assert [frame.getpixel((0, 0))[0] for frame in shown.frames] == [0, 40, 80]  # type: ignore[index]
    assert shown.fps == pytest.approx(4 * 3 / 5)
    path.write_bytes(b"GIF89a and then nothing")
    with pytest.raises(ValueError, match="is no video that can be decoded"):
        clip_of(Video("five", path=path), 3)
    with pytest.raises(ValueError, match="file not found"):
        clip_of(Video("gone", path=tmp_path / "gone.mp4"), 3)


def test_a_film_without_its_decoder_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"film")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install \"mmalign\[video\]\""):
        clip_of(Video("film", path=path), 3)


def test_films_are_decoded_by_pyav(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is an extra: pip install mmalign[video]")
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for n in range(9):
            frame = av.VideoFrame.from_image(Image.new("RGB", (32, 32), (25 * n, 0, 0)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    shown = clip_of(Video("film", path=path), 3)
    assert shown.fps == pytest.approx(10 / 3)
    reds = [np.asarray(frame)[..., 0].mean() for frame in shown.frames]
    assert reds == pytest.approx([0, 100, 200], abs=8)


def test_frames_without_a_video_are_refused_and_models_without_videos_name_the_row(
    folder: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path, pairs(3))
    config = config_of(tmp_path, model={"name": str(folder / "model")}, vlm={"frames": 4})
    with pytest.raises(ValueError, match=r"vlm\.frames=4 would be ignored"):
        open_vlm_data(config, checked_vlm_objective(config))
    save_tiny_vlm(tmp_path / "model")
    item = task_of(config_of(tmp_path), video_rows()).load(RowKey(TRAIN, 0, 0))
    assert "takes none" in item.unusable


def test_pixels_of_qwens_pictures_are_limited(folder: Path) -> None:
    rows = [replace(told(0, "A dog."), images=(picture(0, (40, 40)),))]
    grids = {}
    for name, limits in {"own": {}, "least": {"min_pixels": 1600}, "most": {"max_pixels": 400}}.items():
        task = task_of(config_of(folder, vlm=limits), rows)
        grids[name] = task.load(RowKey(TRAIN, 0, 0)).contexts[0].media["image_grid_thw"].prod().item() * 16
    assert grids["own"] == 1600
    assert grids["most"] <= 400
    assert grids["least"] == 1600
    with pytest.raises(ValueError, match=r"vlm.min_pixels=9 is above"):
        config_of(folder, vlm={"min_pixels": 9, "max_pixels": 8})
    with pytest.raises(ValueError, match="at least 2000 and at most 1600"):
        task_of(config_of(folder, vlm={"min_pixels": 2000}), rows)


def test_limits_on_pixels_mean_nothing_to_llava(tmp_path: Path) -> None:
    save_tiny_vlm(tmp_path / "model")
    with pytest.raises(ValueError, match="mean nothing for a llava"):
        task_of(config_of(tmp_path, vlm={"max_pixels": 400}), pairs(2))


def test_one_frame_has_no_order_and_its_row_is_named(folder: Path) -> None:
    row = replace(video_rows()[0], videos=(Video("still", frames=(ImageBytes("p", data=picture(1).read()),)),))
    item = task_of(config_of(folder, objective=REVERSED), [row]).load(RowKey(TRAIN, 0, 0))
    assert "1 frames has no order" in item.unusable
