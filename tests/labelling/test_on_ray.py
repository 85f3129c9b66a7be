"""What runs inside a Ray actor, without Ray: the job travels as bytes, is opened anew, and scores the same."""

import importlib.util
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import mmalign.rewards as rewards
from mmalign.cli.__main__ import main
from mmalign.cli.manifest import write_pictures
from mmalign.labelling.job import Job, OpenJob
from mmalign.labelling.on_ray import ChunkScorer
from mmalign.playground.captions import caption
from mmalign.playground.renderer import render
from mmalign.playground.scene import sample_scene

HAS_RAY = importlib.util.find_spec("ray") is not None


class Bright:
    name, scale, prompt_limit, version, licence, source = "bright", "0 to 1", None, "1", "none", "nowhere"

    def score(self, prompts, images):
        return torch.tensor([image.getpixel((0, 0))[0] / 255 for image in images])


@pytest.fixture
def generated(tmp_path, monkeypatch):
    monkeypatch.setattr(rewards, "BUILT_IN", {**rewards.BUILT_IN, "bright": Bright})
    prompts = [f"p{number}" for number in range(20)]
    pictures = {
        model: [Image.new("RGB", (4, 4), (start + number,) * 3) for number in range(20)]
        for model, start in (("base", 20), ("aligned", 90))
    }
    write_pictures(tmp_path / "generated", pictures, prompts, list(range(20)), {})
    return tmp_path / "generated"


def job(folder, records):
    return Job(rewards=("bright",), records=records, folders=(folder,))


def test_an_actor_scores_what_a_process_scores(generated, tmp_path):
    opened = OpenJob.open(job(generated, tmp_path / "here"))
    opened.score(opened.records.chunks)
    actor = ChunkScorer(pickle.loads(pickle.dumps(job(generated, tmp_path / "there"))))
    for chunk in reversed(opened.records.chunks):  # in whatever order they are handed out
        assert actor({"chunk": [chunk]}) == {"chunk": [chunk]}
    here, there = (sorted((tmp_path / name).iterdir()) for name in ("here", "there"))
    assert [file.read_bytes() for file in here] == [file.read_bytes() for file in there]


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed here")
def test_without_ray_the_extra_is_named_before_any_work(generated, tmp_path, capsys):
    line = ["label", "--pictures", generated, "--reward", "bright", "--ray", 2, "--out", tmp_path / "out.parquet"]
    assert main(list(map(str, line))) == 2
    assert "pip install 'mmalign[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet.scores").exists()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="Ray, the extra mmalign[ray], is not installed here")
def test_ray_writes_the_same_file(tmp_path):
    rng = np.random.default_rng(0)
    scenes = {caption(scene): scene for scene in (sample_scene(rng, "single") for _ in range(40))}
    pictures = [Image.fromarray(render(scene)) for scene in scenes.values()]
    sides = {"base": pictures, "aligned": [*pictures[1:], pictures[0]]}
    write_pictures(tmp_path / "generated", sides, list(scenes), list(range(len(scenes))), {})
    line = ["label", "--pictures", tmp_path / "generated", "--reward", "oracle", "--as", "rankings", "--out"]
    assert main([*map(str, line), str(tmp_path / "ray.parquet"), "--ray", "1"]) == 0
    assert main([*map(str, line), str(tmp_path / "plain.parquet")]) == 0
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "plain.parquet").read_bytes()
