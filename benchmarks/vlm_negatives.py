"""Arms of ``benchmarks.vlm_evidence`` whose rejected responses, or whose decoding, come from ``mmalign.negatives``."""

from pathlib import Path
from typing import Any

from mmalign.negatives import Decoding, Origin, Speaker, make_negatives, method_of, open_rows
from mmalign.negatives.m3id import m3id_decoding
from mmalign.quickstart_vlm import MODEL

MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "bdhs + anchor": ("bdhs", {}),
    "bdhs, noise + anchor": ("bdhs_noise", {}),
    "word swap + anchor": ("text_swap", {"vocabulary": "playground"}),
    "dropout ntp + anchor": ("dropout_ntp", {}),
    "m3id-dpo + anchor": ("m3id", {}),
}
"""Arm -> (method, its settings): the right responses of the same rows against what the method makes of them."""
DECODINGS: dict[str, dict[str, Any]] = {
    "m3id decoding, as published": {},
    "m3id decoding, every step": {"gate": None},
    "m3id decoding, every step, decay 0.1": {"gate": None, "decay": 0.1},
}
"""Arm -> settings of M3ID: nothing is trained, the base model decodes with it."""
LONGEST = 40


def made_rows(arm: str, rows: Path, out: Path, seed: int) -> Path:
    """The file ``out`` with what the arm's method makes of ``rows``; nothing happens where it is there. Resumable."""
    if out.exists():
        return out
    name, settings = MADE[arm]
    method, opened = method_of(name, settings), open_rows(str(rows))
    speaker = _speaker() if method.speaks else None
    origin = Origin(opened.fingerprint, MODEL if speaker else None, speaker.fingerprint() if speaker else None)
    print(make_negatives(name, method, opened, out, origin=origin, speaker=speaker, seed=seed))
    return out


def decoding_of(arm: str) -> Any:
    """``decoding`` of :func:`mmalign.evaluation.vlm_playground.measure` for the arm."""
    return m3id_decoding(**DECODINGS[arm])


def _speaker() -> Speaker:
    from mmalign.models.vlm import load_vlm
    from mmalign.training.config import ModelConfig

    loaded = load_vlm(ModelConfig(name=MODEL))
    return Speaker(loaded.model, loaded.processor, Decoding(max_new_tokens=LONGEST))
