"""Settings with all mistakes at once, galleries, and pictures without and with their provenance."""

import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from app import compare, markup, settings
from app.context import Context
from app.gallery import GallerySource, open_picture
from app.live import LiveSource
from app.scoring import Scorers
from app.sources import Picture, Request, bare_png
from app.views import present
from mmalign.cli.manifest import MANIFEST, read_pictures

EVIL = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


def form_of(ctx: Context, **changes: object) -> compare.Form:
    prompt = ctx.source.prompts()[0]
    values = {"left": "base", "right": "aligned", "prompt": prompt, "negative": "", "seed": 0, "count": 2}
    values |= {"steps": 12, "guidance": 1.0, "lora_scale": 1.0, "rewards": ["oracle"]}
    return compare.read_form(ctx.source, ctx.scorers, **{**values, **changes})


def compared(ctx: Context, **changes: object) -> compare.Comparison:
    return compare.compare(ctx.source, ctx.scorers, form_of(ctx, **changes), lambda share, what: None, lambda: None)


def test_every_mistake_in_a_models_file_at_once(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(
        "models:\n  - {name: one, base: playground/none}\n"
        "  - {name: one, base: playground/tiny-sdxl, aligned: runs/nowhere, guidance: .nan, speed: 3}\n"
        "  - {name: '', base: playground/tiny-sdxl, lora_scale: 0.5}\nsteps: 0\n"
    )
    with pytest.raises(ValueError, match="mistakes") as caught:
        settings.read_settings(file)
    told = str(caught.value)
    for part in ("models.0.base", "models.1.aligned", "models.1.guidance", "models.1.speed", "models.2.name"):
        assert part in told
    for part in ("models.2.lora_scale", "steps", "'one' is used 2 times"):
        assert part in told


def test_the_example_file_is_valid() -> None:
    read = settings.read_settings(Path(settings.__file__).with_name("models.example.yaml"))
    assert [model.guidance for model in read.models] == [None, 4.0]


def test_the_default_finds_the_newest_finished_quickstart(tmp_path: Path) -> None:
    assert "make quickstart" in settings.default_settings(tmp_path / "none").notice
    for age, name in ((100, "dpo_seed0"), (50, "mapo_seed1"), (10, "dpo_seed2")):
        (tmp_path / name).mkdir()
        if name != "dpo_seed2":  # interrupted: no weights
            weights = tmp_path / name / "pytorch_lora_weights.safetensors"
            weights.write_bytes(b"")
            os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    found = settings.default_settings(tmp_path)
    assert found.models[1].aligned == tmp_path / "mapo_seed1"
    assert found.models[1].name == "mapo-aligned"


def test_a_base_alone_and_a_scale_without_lora_are_refused() -> None:
    with pytest.raises(ValueError, match="give --aligned"):
        settings.given_settings("playground/tiny-sdxl", None)
    with pytest.raises(ValueError, match="runs/none is not a folder"):
        settings.given_settings("playground/tiny-sdxl", Path("runs/none"))


def test_a_gallery_shows_what_all_folders_have(gallery: list[Path], tmp_path: Path) -> None:
    source = GallerySource(gallery)
    assert source.names == ["base", "aligned"]
    prompt = source.prompts()[0]
    picture = source.sample("aligned", Request(prompt, (2,)))[0]
    assert picture.png == bare_png(Image.open(read_pictures(gallery[1])[prompt, 2]))
    assert picture.provenance == {"steps": 12, "guidance": 1.0}
    for bad in (Request("another prompt", (0,)), Request(prompt, (77,))):
        with pytest.raises(ValueError, match="unknown"):
            source.sample("base", bad)
    with pytest.raises(ValueError, match="a folder twice"):
        GallerySource([gallery[0], gallery[0]])
    with pytest.raises(ValueError, match="two folders or more"):
        GallerySource(gallery[:1])


def test_a_manifest_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    for name, file in (("a", "a/../../secret.png"), ("b", "b/link.png")):
        (tmp_path / "gallery" / name).mkdir(parents=True)
        line = {"file": file, "prompt": "p", "seed": 0}
        (tmp_path / "gallery" / name / MANIFEST).write_text(json.dumps({**line, "file": file.removeprefix(f"{name}/")}))
    (tmp_path / "gallery" / "b" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="outside of it"):
        GallerySource([tmp_path / "gallery" / "a", tmp_path / "gallery" / "b"])


def test_bombs_and_broken_pictures_are_refused(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = zlib.compress(b"\0" * 1_000_000)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    for name, data, words in (
        ("bomb", bomb, "pixels"),
        ("text", b"hello", "cannot be shown"),
        ("cut", bomb[:20], "cannot be shown"),
    ):
        (tmp_path / f"{name}.png").write_bytes(data)
        with pytest.raises(ValueError, match=words):
            open_picture(tmp_path / f"{name}.png")


def test_pictures_are_lossless_and_bare_until_they_are_signed(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "model: dpo")
    exif = Image.Exif()
    exif[0x010E] = "dpo"
    noise = Image.effect_noise((32, 32), 80).convert("RGB")
    noise.save(tmp_path / "dpo_seed1.png", pnginfo=info, exif=exif, icc_profile=b"dpo profile")
    picture = Picture(open_picture(tmp_path / "dpo_seed1.png"), "dpo", EVIL, 1, {"adapter_hash": "ab" * 32})
    assert b"dpo" not in picture.png
    assert Image.open(io.BytesIO(picture.png)).info == {}
    signed = Image.open(io.BytesIO(picture.signed_png()))
    assert json.loads(signed.info["mmalign"]) == {
        "model": "dpo",
        "prompt": EVIL,
        "seed": 1,
        "adapter_hash": "ab" * 32,
    }
    assert signed.tobytes() == noise.tobytes()


def test_a_comparison_has_the_same_seeds_and_true_scores(ctx: Context) -> None:
    seen: list[float] = []
    made = compare.compare(ctx.source, ctx.scorers, form_of(ctx), lambda share, what: seen.append(share), lambda: None)
    assert [p.seed for p in made.left] == [p.seed for p in made.right] == [0, 1]
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    (scored, left, right) = made.scores(1)[0]
    from mmalign.playground.oracle import judge

    assert scored.reward == "oracle"
    assert left == pytest.approx(judge(made.left[1].image, made.left[1].prompt).share)
    assert right == 1.0
    assert f"▲ {right - left:+.3g}" in markup.caption(made, 1, "b")


def test_every_mistake_in_the_form_at_once(ctx: Context) -> None:
    with pytest.raises(ValueError, match="left model") as caught:
        form_of(ctx, left="../x", seed=-1, count=99, steps=float("nan"), guidance=1e9, lora_scale=-1, rewards=["none"])
    assert len(str(caught.value).splitlines()) == 7


def test_a_negative_prompt_without_guidance_is_refused() -> None:
    live = LiveSource(settings.default_settings(Path("none")))
    names = {"left": live.names[0], "right": live.names[0], "prompt": "a", "negative": "b", "seed": 0, "count": 1}
    values = {**names, "steps": 2, "guidance": 1.0, "lora_scale": 1.0, "rewards": []}
    with pytest.raises(ValueError, match="no effect at guidance 1"):
        compare.read_form(live, Scorers(["oracle"]), **values)
    compare.read_form(live, Scorers(["oracle"]), **{**values, "right": live.names[1]})  # that one has guidance 4


def test_stop_ends_a_comparison_between_steps(ctx: Context) -> None:
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        compare.compare(ctx.source, ctx.scorers, form_of(ctx), lambda share, what: None, stop)
    assert len(calls) == 3


def test_the_download_is_a_gallery_again(ctx: Context, tmp_path: Path) -> None:
    made = compared(ctx)
    with zipfile.ZipFile(io.BytesIO(compare.archive([made.left, made.right]))) as zipped:
        zipped.extractall(tmp_path)
    again = GallerySource([tmp_path / "base", tmp_path / "aligned"])
    request = Request(made.left[0].prompt, (0, 1))
    assert [p.png for p in again.sample("aligned", request)] == [p.png for p in made.right]
    assert again.sample("base", request)[0].provenance == {"steps": 12, "guidance": 1.0}


def test_a_reward_that_cannot_score_says_why_and_gives_no_number(ctx: Context) -> None:
    picture = Picture(Image.new("RGB", (64, 64)), "m", "words the oracle does not know", 0)
    scored = ctx.scorers.score("oracle", [picture])
    assert scored.scores == ()
    assert "unknown words" in scored.problem
    with pytest.raises(ValueError, match="not installed; installed:"):
        Scorers(["no-such-reward"])


def test_views_send_only_what_is_looked_at(ctx: Context) -> None:
    made = compared(ctx)
    for view, part in (
        ("Side by side", "left"),
        ("Slider", "slider"),
        ("Difference", "difference"),
        ("Flicker", "flicker"),
    ):
        parts = present(made, 0, view)
        for name in ("left", "slider", "difference", "flicker"):
            assert parts[name]["visible"] == (name == part)
            assert bool(parts[name]["value"]) == (name == part)
    assert len(present(made, 0, "Slider")["grid"]["value"]) == 4
    with pytest.raises(ValueError, match="no seed number 5"):
        present(made, 5, "Slider")


def test_difference_is_four_times_the_gap() -> None:
    left, right = Image.new("RGB", (2, 2), (10, 20, 30)), Image.new("RGB", (2, 2), (20, 20, 230))
    assert compare.difference(left, right).getpixel((0, 0)) == (40, 0, 255)
    with pytest.raises(ValueError, match="no difference"):
        compare.difference(left, Image.new("RGB", (3, 2)))


def test_names_and_prompts_are_text_everywhere() -> None:
    image = Image.new("RGB", (8, 8))
    side = Picture(image, EVIL, EVIL, 0)
    scored = (compare.Scored(EVIL, EVIL, (0.1, 0.2)), compare.Scored(EVIL, "", problem=EVIL))
    made = compare.Comparison((side,), (side,), scored)
    pieces = [markup.hero(EVIL, EVIL), markup.notice(EVIL), markup.problem(EVIL), markup.empty(EVIL, EVIL)]
    pieces += [markup.caption(made, 0, "a"), markup.caption(made, 0, "b"), markup.summary(made, 0)]
    pieces += [
        markup.player(EVIL),
        markup.player(f"{EVIL}#0123abcd"),
        markup.flicker(side, side),
        markup.tiles([(EVIL, EVIL)]),
    ]
    for piece in pieces:
        assert "<script" not in piece
        assert "<img src=x" not in piece
        assert 'onerror="' not in piece
