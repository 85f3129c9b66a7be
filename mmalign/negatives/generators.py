"""Every way of making negatives by its name, and a run of one of them over a data set.

To add one, write a :class:`mmalign.negatives.kit.Method` in a file of its own and its line in ``GENERATORS``:
``mmalign negatives`` and its help follow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mmalign.negatives.answers import Answered
from mmalign.negatives.bdhs import BDHS, BDHSNoise
from mmalign.negatives.best_of import BestOfN
from mmalign.negatives.building import Built, Made, Make, build, seed_of, work_folder
from mmalign.negatives.divide import DivideAndConquer
from mmalign.negatives.kit import Kit, Method
from mmalign.negatives.m3id_pairs import M3IDPairs
from mmalign.negatives.methods import DropoutNTP, TextSwap
from mmalign.negatives.mia import MIA
from mmalign.negatives.povid import PovidImage, PovidText
from mmalign.negatives.realign import ReAlign
from mmalign.negatives.speaking import Speaker
from mmalign.types import VLMPair

GENERATORS: dict[str, type[Method]] = {
    "bdhs": BDHS,
    "bdhs_noise": BDHSNoise,
    "best_of": BestOfN,
    "divide_and_conquer": DivideAndConquer,
    "dropout_ntp": DropoutNTP,
    "m3id": M3IDPairs,
    "mia": MIA,
    "povid_image": PovidImage,
    "povid_text": PovidText,
    "realign": ReAlign,
    "text_swap": TextSwap,
}


@dataclass(frozen=True)
class Origin:
    """What a file of negatives was made by and from, kept in the file and in every row.

    ``model``: its name, ``fingerprint`` that of its weights and processor; ``rows``: fingerprint of the rows.
    """

    rows: str
    model: str | None = None
    fingerprint: str | None = None


def method_of(name: str, settings: Mapping[str, Any]) -> Method:
    """The method ``name`` with ``settings``; one ValueError with every mistake."""
    if name not in GENERATORS:
        close = get_close_matches(name, GENERATORS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name!r} is no way of making negatives; choose one of {', '.join(GENERATORS)}.{hint}")
    known = defaults_of(name)
    problems = [
        f"{name} has no setting {key!r}; it has {', '.join(known) or 'none'}" for key in settings if key not in known
    ]
    if problems:
        raise ValueError("\n".join(problems))
    try:
        return TypeAdapter(GENERATORS[name]).validate_python(dict(settings), strict=False)
    except ValidationError as error:
        raise ValueError("\n".join(_told(name, problem) for problem in error.errors())) from error


def defaults_of(name: str) -> dict[str, Any]:
    """Settings of the method ``name`` with their default values."""
    kind: Any = GENERATORS[name]
    return {field.name: field.default for field in fields(kind)}


def make_negatives(
    name: str,
    method: Method,
    rows: Sequence[Answered],
    out: str | Path,
    *,
    origin: Origin,
    speaker: Speaker | None = None,
    seed: int = 0,
) -> Built:
    """Run ``method`` over ``rows`` into ``out``: see :func:`mmalign.negatives.building.build`.

    Sample ids get ``#name`` behind them, so that files of several methods can be trained on together. Extras of a row
    say under ``made_by`` what it was made by. Raises ValueError where the method speaks and there is no ``speaker``.
    """
    if method.speaks and speaker is None:
        raise ValueError(f"{name} speaks with a model, and none was given")
    made_by: dict[str, Any] = {"method": name, "settings": asdict(method), "model": origin.model}  # type: ignore[call-overload]
    made_by |= {"model_fingerprint": origin.fingerprint, "seed": seed}
    if speaker is not None:
        made_by["decoding"] = asdict(speaker.decoding)
    kit = Kit(rows, work_folder(out), seed, speaker)
    make = _recorded(_answered_first(method, kit), name, made_by)
    return build(rows, make, out, settings={**made_by, "rows": origin.rows}, seed=seed)


def _answered_first(method: Method, kit: Kit) -> Make:
    """The method, with the model's own answer as the response of a row that has none."""
    make = method.open(kit)

    def answered(row: Answered, seed: int) -> Made:
        if row.response or not method.reads_response:
            return make(row, seed)
        from mmalign.data.decoding import decode

        pictures = [decode(image) for image in row.images]
        said = kit.voice.say(row.prompt, pictures, seed_of(seed, "response"), name=row.sample_id).strip()
        if not said:
            return "the model gave no response to start from"
        return make(replace(row, response=said, extras={**row.extras, "response_by": "the model"}), seed)

    return answered


def _recorded(make: Make, name: str, made_by: Mapping[str, Any]) -> Make:
    """``make`` whose rows say what made them, with sample ids of their own."""

    def recorded(row: Answered, seed: int) -> Made:
        made = make(row, seed)
        if isinstance(made, str):
            return made
        pairs = (made,) if isinstance(made, VLMPair) else made
        return tuple(
            replace(
                pair,
                sample_id=f"{pair.sample_id}#{name}",
                extras={**pair.extras, "made_by": {**made_by, "row_seed": seed}},
            )
            for pair in pairs
        )

    return recorded


def _told(name: str, problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    what = problem["msg"].removeprefix("Value error, ")
    return f"{name}: {place}={problem['input']!r}: {what}" if place else f"{name}: {what}"
