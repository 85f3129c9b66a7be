"""Small files in every VLM format, made by tests for themselves."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mmalign.training.config import DataConfig


def png(seed: int = 0, width: int = 20, height: int = 12) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(folder: Path, number: int = 3) -> None:
    for index in range(number):
        (folder / f"{index}.png").write_bytes(png(index))


def config(path: Path, source: str = "auto", **settings: Any) -> DataConfig:
    return DataConfig(source=source, path=str(path), **settings)


def write_json(path: Path, records: list[Any]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    else:
        path.write_text(json.dumps(records, ensure_ascii=False, indent=1))
    return path


def hub_image(seed: int, path: str | None = None) -> dict[str, Any]:
    return {"bytes": png(seed), "path": path or f"{seed}.jpg"}


def write_parquet(path: Path, records: list[dict[str, Any]], **columns: pa.DataType) -> Path:
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kinds = {"image": picture, "images": pa.list_(picture), **columns}
    fields = [
        pa.field(name, kinds[name]) if name in kinds else pa.field(name, pa.array([r[name] for r in records]).type)
        for name in records[0]
    ]
    pq.write_table(pa.Table.from_pylist(records, pa.schema(fields)), path, row_group_size=2)
    return path


def turn(who: str, text: str) -> dict[str, str]:
    return {"from": who, "value": text}


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


VICUNA = "A chat between a curious user and an assistant. USER: <image>\nWhat is it? ASSISTANT:"
# Format -> (file name, one record); every one shows picture 0.png (or a video), and prefers "A cube." to "A ball.".
RECORDS: dict[str, tuple[str, dict[str, Any]]] = {
    "povid": (
        "povid.json",
        {
            "id": "7",
            "image": "0.png",
            "conversations": [turn("human", "<image>\nWhat is it?"), turn("gpt", "A cube.")],
            "rejected_conversations": [turn("human", "<image>\nWhat is it?"), turn("gpt", "A ball.")],
            "retrieved_image": "1.png",
        },
    ),
    "llava": (
        "llava.json",
        {
            "id": "7",
            "image": "0.png",
            "conversations": [turn("human", "What is it?\n<image>")],
            "output_1": turn("llava", "A ball."),
            "output_2": turn("llava", "A cube."),
            "preference": 2,
        },
    ),
    "mdpo": ("mdpo.json", {"img_path": "0.png", "prompt": VICUNA, "chosen": "A cube.", "rejected": "A ball."}),
    "mm_rlhf": (
        "dpo_pairs.jsonl",
        {
            "id": "7",
            "image": "0.png",
            "prompt": "What is it?",
            "chosen": "A cube.",
            "rejected": "A ball.",
            "chosen_reason": "right",
            "ls_factor": 0.5,
        },
    ),
    "mia_dpo": (
        "mia.json",
        {
            "id": "7",
            "image": ["0.png", "1.png"],
            "prompt": "Picture 1: <image-placeholder>\nPicture 2: <image-placeholder>\nWhat is in picture 1?",
            "chosen": "A cube.",
            "rejected": "A ball.",
            "gt": "A cube.",
        },
    ),
    "llama_factory": (
        "lf.json",
        {
            "conversations": [turn("human", "<image>What is it?")],
            "chosen": turn("gpt", "A cube."),
            "rejected": turn("gpt", "A ball."),
            "images": ["0.png"],
        },
    ),
    "ms_swift": (
        "swift.jsonl",
        {
            "messages": [said("system", "Be brief."), said("user", "<image>What is it?"), said("assistant", "A cube.")],
            "rejected_response": "A ball.",
            "images": ["0.png"],
            "rejected_images": ["1.png"],
        },
    ),
    "video_salmonn": (
        "salmonn.json",
        {
            "video": "clip.mp4",
            "audio": "clip.wav",
            "conversations": [
                turn("human", "<image>\nWhat is it?"),
                turn("gpt", "A cube."),
                turn("reject_gpt", "A ball."),
                turn("gt", "A red cube."),
            ],
        },
    ),
    "trl": ("trl.jsonl", {"image": "0.png", "prompt": "What is it?", "chosen": "A cube.", "rejected": "A ball."}),
}
