"""Multi-round preference optimisation: every round trains on top of the merged model of the round before.

mrDPO of video-SALMONN 2 (arXiv 2506.15220). A round is a run of its own in ``output/round_1``, ``output/round_2``, ...
with its log, checkpoints and report; ``merged`` in it is the model that the next round starts from and is compared
with. ``output/aligned`` is the merged model of the last round. A round that has ``merged`` is over, which is all that a
resumed run has to know about it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import gather_object

from mmalign.training.config import Config
from mmalign.training.loading import dump_config
from mmalign.training.order import stable_hash
from mmalign.training.processes import join_processes, main_process_first, processes_started
from mmalign.training.resume import HARMLESS, differences

Run = Callable[[Config, bool], Any]


def train_rounds(config: Config, run: Run, *, resume: bool) -> list[Any]:
    """What ``run(config of a round, resume)`` gave for every round that was not over already, in order.

    ValueError where rounds of an earlier run are there and ``resume`` is not asked for, or were trained with other
    settings.
    """
    folder = Path(config.output)
    rounds = list(_rounds(config))
    begun = _on_any_process(Path(rounds[0].output).exists())
    if begun and not resume:
        raise ValueError(f"{rounds[0].output} is of an earlier run: go on with --resume, or give another output")
    if resume and not begun:
        raise ValueError(f"there is no round in {folder} to resume from; start afresh without --resume")
    results = []
    for number, of_round in enumerate(rounds, start=1):
        place = Path(of_round.output)
        merged = folder / "aligned" if number == config.training.rounds else place / "merged"
        _refuse_other_settings(of_round)
        if (merged / "config.json").is_file():
            continue
        if not (place / "aligned").is_dir():
            results.append(run(of_round, any((place / "checkpoints").glob("step_*"))))
        with main_process_first():
            if not (merged / "config.json").is_file():
                merge_round(of_round, merged)
    return results


def merge_round(config: Config, folder: Path) -> Path:
    """Write the model of the round ``config`` with its trained adapters merged, added in fp32 and rounded once."""
    from mmalign.models.card import Card
    from mmalign.models.vlm import load_vlm
    from mmalign.models.vlm_export import read_vlm_adapter, save_vlm

    aligned = Path(config.output) / "aligned"
    if config.model.lora is None:
        components = load_vlm(config.model.model_copy(update={"name": str(aligned)}))
    else:
        from mmalign.models.lora_weights import merge

        components = load_vlm(config.model)
        merge(components.model, read_vlm_adapter(aligned))
    return save_vlm(components, folder, Card("multi-round preference optimisation", config.objective))


def _rounds(config: Config) -> Iterator[Config]:
    """The configuration of every round."""
    training, model, reference = config.training, config.model, config.reference
    for number in range(1, training.rounds + 1):
        place = Path(config.output) / f"round_{number}"
        if number > 1:
            before = place.with_name(f"round_{number - 1}") / "merged"
            model = model.model_copy(update={"name": str(before), "revision": None})
            seed = stable_hash(config.training.seed, "round", number) % 2**31
            training = training.model_copy(update={"seed": seed})
        if number > 1 and reference.path is not None:  # every round has a reference of its own, so scores of its own
            reference = reference.model_copy(update={"path": f"{config.reference.path}_{place.name}"})
        of_round = {"model": model, "reference": reference, "output": str(place)}
        yield config.model_copy(update={**of_round, "training": training.model_copy(update={"rounds": 1})})


def _on_any_process(flag: bool) -> bool:
    """Collective, so that no process writes before all of them have looked."""
    if processes_started() == 1:
        return flag
    join_processes()
    return any(gather_object([flag]))


def _refuse_other_settings(config: Config) -> None:
    """A finished round says itself with what it was trained; one that goes on is compared by its checkpoint, too."""
    described = Path(config.output) / "config.yaml"
    if not described.is_file():
        return
    now = yaml.safe_load(dump_config(config))
    unlike = [
        f"{key}: {old!r} then, {new!r} now"
        for key, old, new in differences(yaml.safe_load(described.read_text(encoding="utf-8")), now)
        if key == "training.steps" or not any(key == name or key.startswith(f"{name}.") for name in HARMLESS)
    ]
    if unlike:
        listed = "\n".join(f"  - {line}" for line in unlike)
        raise ValueError(f"{config.output} was trained with other settings:\n{listed}\nSet these back, or start afresh")
