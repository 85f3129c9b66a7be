"""Freezing a combined reward to a reference set: the pictures that ``mmalign label --fit`` is given."""

from collections.abc import Callable

import numpy as np

from mmalign.evaluation.combined import CombinedReward
from mmalign.labelling.job import Job
from mmalign.labelling.rewards import open_reward
from mmalign.labelling.scoring import ScoreRecords, score_chunks, scoring_key


def fit_state(job: Job, progress: Callable[[int], None] | None = None) -> tuple[CombinedReward, int]:
    """Score ``job``'s pictures by each reward of its one YAML file and save what the transforms remember.

    The state goes to the file that ``state`` names. Gives the reward and the number of pictures. ValueError for
    anything but one YAML file with ``state``, and for pictures that cannot be read.
    """
    combined = open_reward(job.rewards[0]) if len(job.rewards) == 1 else None
    if not isinstance(combined, CombinedReward) or combined.state_file is None:
        raise ValueError(
            "--fit freezes one combined reward: give one --reward FILE.yaml whose file names its state: ..."
        )
    pictures, members = job.open_pictures(), list(combined.models.values())
    # In memory: members score as they do in labelling, but the records of labels are of the whole combination.
    records = ScoreRecords(None, scoring_key(pictures.fingerprint, members), len(pictures.groups))
    score_chunks(pictures.groups, members, records, records.chunks, batch_size=job.batch_size, progress=progress)
    scored = records.all()
    broken = next((row for row in scored if row.problem), None)
    if broken is not None:
        raise ValueError(f"{broken.sample_id}: {broken.problem}; a reference set has to be whole")
    prompts = [group.prompt for group in pictures.groups for _ in group.images]
    raw = {
        name: np.array([score for row in scored for score in row.scores[model.name]])
        for name, model in combined.models.items()
    }
    combined.fit_scores(prompts, raw)
    combined.save(combined.state_file)
    return combined, len(prompts)
