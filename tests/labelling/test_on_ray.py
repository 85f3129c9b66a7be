"""What runs inside a Ray actor, without Ray; and where there is Ray, two workers, killed and resumed."""

import importlib.util
import pickle
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

import mmalign.rewards as rewards
from mmalign.cli.__main__ import main
from mmalign.cli.manifest import write_pictures
from mmalign.labelling import on_ray
from mmalign.labelling.job import Job, OpenJob
from mmalign.labelling.on_ray import ChunkScorer
from mmalign.labelling.scoring import ROWS_PER_CHUNK
from tests.labelling.test_label import Slow, plugged_in

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


def test_without_ray_the_extra_is_named_before_any_work(generated, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    line = ["label", "--pictures", generated, "--reward", "bright", "--ray", 2, "--out", tmp_path / "out.parquet"]
    assert main(list(map(str, line))) == 2
    assert "pip install 'mmalign[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet.scores").exists()


LOGGED = """
import os, time, torch
class Slow:
    name, scale, prompt_limit, version, licence, source = "slow", "0 to 1", None, "1", "none", "nowhere"
    def score(self, prompts, images):
        with open({log!r}, "a") as log:
            log.write(f"{{os.getpid()}} {{len(images)}}\\n")
        time.sleep(0.5)
        return torch.tensor([image.getpixel((0, 0))[0] / 255 for image in images])
"""


def test_a_job_with_other_weights_does_not_go_on_from_these_records(generated, tmp_path, monkeypatch):
    """Versions may be alike: those of two runs of the same recipe are."""
    monkeypatch.setitem(rewards.BUILT_IN, "bright", lambda **options: Bright())
    monkeypatch.setattr(rewards, "_build", lambda name, factory, options: factory(**options))
    first = replace(job(generated, tmp_path / "kept"), options={"weights": "run1", "device": "cpu"})
    OpenJob.open(first).score([0])
    OpenJob.open(replace(first, options={"weights": "run1"}))
    with pytest.raises(ValueError, match="scores of other pictures or other reward models"):
        OpenJob.open(replace(first, options={"weights": "run2"}))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="Ray, the extra mmalign[ray], is not installed here")
def test_two_workers_killed_and_resumed_write_the_same_file(tmp_path, monkeypatch):
    """Real processes: what was scored before the kill is not scored again, and no byte differs from a plain run."""
    rows, log = 100, tmp_path / "log"
    pictures = {
        model: [Image.new("RGB", (4, 4), (start + number,) * 3) for number in range(rows)]
        for model, start in (("base", 20), ("aligned", 150))
    }
    write_pictures(tmp_path / "generated", pictures, [f"p{n}" for n in range(rows)], list(range(rows)), {})
    environment = plugged_in(tmp_path / "plug", 0.5)
    (tmp_path / "plug" / "slow_reward.py").write_text(LOGGED.format(log=str(log)))
    line = ["label", "--pictures", str(tmp_path / "generated"), "--reward", "slow", "--as", "rankings", "--out"]
    out, plain = tmp_path / "ray.parquet", tmp_path / "plain.parquet"
    command = [sys.executable, "-m", "mmalign.cli", *line, str(out), "--ray", "2"]
    records = tmp_path / "ray.parquet.scores"
    running = subprocess.Popen(command, env=environment, stderr=subprocess.STDOUT, stdout=subprocess.PIPE)
    while running.poll() is None and not list(records.glob("scores-*.json")):
        time.sleep(0.02)
    running.kill()
    told = running.communicate()[0].decode()
    time.sleep(1)  # the workers end with the driver
    scored = len(list(records.glob("scores-*.json"))) * ROWS_PER_CHUNK
    assert 0 < scored < rows, told
    assert len({entry.split()[0] for entry in log.read_text().splitlines()}) == 2
    log.unlink()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(int(entry.split()[1]) for entry in log.read_text().splitlines()) == 2 * (rows - scored)
    assert "ray" not in done.stdout.replace(str(tmp_path), "").replace("ray.parquet", "").lower()
    monkeypatch.setitem(rewards.BUILT_IN, "slow", Slow)
    assert main([*line, str(plain)]) == 0
    assert out.read_bytes() == plain.read_bytes()
