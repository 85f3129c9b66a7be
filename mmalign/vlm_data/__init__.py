"""Preference data of vision-language models: a file for each format, one row, and every bad record counted and named.

``open_source(config)`` gives a ``RowTable`` of ``VLMPair``. To add a format, write ``parse(fields) -> [Draft]`` and
``open_NAME(config)`` in a file of its own, its line in ``VLM_SOURCES``, and the rule in ``detect.py``.
"""

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from mmalign.data.table import RowTable
from mmalign.data.verification import verify
from mmalign.training.config import DataConfig
from mmalign.types import VLMPair
from mmalign.vlm_data.balancing import balanced
from mmalign.vlm_data.canonical import open_vlm_canonical, write_vlm_canonical
from mmalign.vlm_data.detect import detect_vlm_source
from mmalign.vlm_data.llama_factory import open_llama_factory, write_llama_factory
from mmalign.vlm_data.llava import open_llava, write_llava
from mmalign.vlm_data.mdpo import open_mdpo
from mmalign.vlm_data.memory import table_of
from mmalign.vlm_data.mia_dpo import open_mia_dpo
from mmalign.vlm_data.mm_rlhf import open_mm_rlhf
from mmalign.vlm_data.ms_swift import open_ms_swift, write_ms_swift
from mmalign.vlm_data.povid import open_povid
from mmalign.vlm_data.published import (
    write_mdpo,
    write_mia_dpo,
    write_mm_rlhf,
    write_povid,
    write_rlaif_v,
    write_rlhf_v,
)
from mmalign.vlm_data.retrieved import with_retrieved
from mmalign.vlm_data.rlaif_v import open_rlaif_v
from mmalign.vlm_data.rlhf_v import open_rlhf_v
from mmalign.vlm_data.segments import changed_spans, weigh_changes
from mmalign.vlm_data.trl import open_trl, write_trl
from mmalign.vlm_data.video_salmonn import open_video_salmonn
from mmalign.vlm_data.vlfeedback import open_vlfeedback


def open_auto(config: DataConfig) -> RowTable[VLMPair]:
    """The table of the source that ``detect_vlm_source`` names; its report says why."""
    found = detect_vlm_source(config.path, split=config.split, revision=config.revision)
    if found is None:
        raise ValueError(
            f"data.path={config.path}: no VLM source reads its columns; known are {', '.join(VLM_SOURCES)}"
        )
    table = VLM_SOURCES[found.source](DataConfig(**{**config.model_dump(), "source": found.source}))
    notes = (f"Recognised as {found.source}: {found.why}.", *table.report.notes)
    return replace(table, report=replace(table.report, notes=notes))


VLM_SOURCES: dict[str, Callable[[DataConfig], RowTable[VLMPair]]] = {
    "rlhf_v": open_rlhf_v,
    "rlaif_v": open_rlaif_v,
    "trl": open_trl,
    "llava": open_llava,
    "povid": open_povid,
    "mdpo": open_mdpo,
    "mm_rlhf": open_mm_rlhf,
    "mia_dpo": open_mia_dpo,
    "vlfeedback": open_vlfeedback,
    "llama_factory": open_llama_factory,
    "ms_swift": open_ms_swift,
    "video_salmonn": open_video_salmonn,
    "vlm_canonical": open_vlm_canonical,
    "auto": open_auto,
}
# Forms that other tools read -> writer(table, path): those of PARQUET_FORMS are one file, the others new folders.
VLM_WRITERS: dict[str, Callable[[RowTable[VLMPair], str | Path], tuple[Path, tuple[str, ...]]]] = {
    "trl": write_trl,
    "llava": write_llava,
    "llama_factory": write_llama_factory,
    "ms_swift": write_ms_swift,
    "rlhf_v": write_rlhf_v,
    "rlaif_v": write_rlaif_v,
    "povid": write_povid,
    "mdpo": write_mdpo,
    "mm_rlhf": write_mm_rlhf,
    "mia_dpo": write_mia_dpo,
}
PARQUET_FORMS = ("trl", "rlhf_v", "rlaif_v")


def open_source(config: DataConfig, *, record: Path | None = None) -> RowTable[VLMPair]:
    """The table ``config`` asks for: indexed, ties settled, cut to ``max_rows``, every picture decoded once.

    ``record``: a JSON file that keeps the result of the picture check (see ``mmalign.data.verify``). Raises ValueError
    for an unknown source, an unusable file, or more than ``max_corrupt`` unusable rows, missing pictures included.
    """
    return verify(open_table(config), config.max_corrupt, record=record)


def open_table(config: DataConfig) -> RowTable[VLMPair]:
    """The same table before any picture is looked at."""
    if config.source not in VLM_SOURCES:
        close = get_close_matches(config.source, VLM_SOURCES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"data.source={config.source!r} is no source of VLM rows; choose one of {', '.join(VLM_SOURCES)}.{hint}"
        )
    return VLM_SOURCES[config.source](config)


__all__ = [
    "PARQUET_FORMS",
    "VLM_SOURCES",
    "VLM_WRITERS",
    "balanced",
    "changed_spans",
    "detect_vlm_source",
    "open_source",
    "open_table",
    "table_of",
    "weigh_changes",
    "with_retrieved",
    "write_llama_factory",
    "write_llava",
    "write_ms_swift",
    "write_trl",
    "write_vlm_canonical",
]
