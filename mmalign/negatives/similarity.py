"""How alike two texts are: by an encoder of sentences in a folder, or by nothing but their words."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Similarity = Callable[[str, str], float]
LEXICAL = "lexical"


def lexical(one: str, other: str) -> float:
    """Cosine of the counts of words, capitals aside: word order and meaning count for nothing. 1 for two empty texts.

    It is no measure of meaning: "not red" and "red" are near. For what methods publish thresholds of, give an encoder.
    """
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in (one, other)]
    if not all(counts):
        return float(counts[0] == counts[1])
    product = sum(number * counts[1][word] for word, number in counts[0].items())
    sizes = [math.sqrt(sum(number**2 for number in count.values())) for count in counts]
    return product / (sizes[0] * sizes[1])


class SentenceEncoder:
    """Cosine of sentence embeddings: a folder of transformers or sentence-transformers with safetensors.

    Pooling as ``1_Pooling/config.json`` says (mean or the first token), the mean over tokens where there is none, as
    all-mpnet-base-v2 has it. ValueError for a folder that is none.
    """

    def __init__(self, folder: str | Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.folder = checked_encoder(folder)
        self.first_token = _pools_first_token(self.folder)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)
        self.model: Any = AutoModel.from_pretrained(self.folder, use_safetensors=True).eval()

    @torch.no_grad()
    def __call__(self, one: str, other: str) -> float:
        """In [-1, 1]; texts beyond the encoder's length are cut, as the library of these models does."""
        longest = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings - 2)
        made = self.tokenizer([one, other], padding=True, truncation=True, max_length=longest, return_tensors="pt")
        states = self.model(**made).last_hidden_state.float()
        kept = made["attention_mask"][..., None].float()
        pooled = states[:, 0] if self.first_token else (states * kept).sum(1) / kept.sum(1)
        return float(torch.nn.functional.cosine_similarity(pooled[0], pooled[1], dim=0))


def similarity_of(name: str) -> Similarity:
    """``lexical``, or the encoder in the folder ``name``."""
    return lexical if name == LEXICAL else SentenceEncoder(name)


def check_similarity(name: str) -> None:
    """ValueError where ``name`` is neither ``lexical`` nor the folder of an encoder; nothing is loaded."""
    if name != LEXICAL:
        _pools_first_token(checked_encoder(name))


def checked_encoder(folder: str | Path) -> Path:
    """The folder, if it holds a model. ValueError otherwise."""
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise ValueError(
            f"similarity={str(folder)!r} is no folder with a config.json: give that of an encoder of sentences (as "
            f"sentence-transformers/all-mpnet-base-v2), or {LEXICAL}, which compares words alone"
        )
    return path


def _pools_first_token(folder: Path) -> bool:
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return False
    told = json.loads(file.read_text(encoding="utf-8"))
    modes = sorted(name for name, value in told.items() if name.startswith("pooling_mode") and value is True)
    if modes not in (["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
        raise ValueError(f"{file} pools by {', '.join(modes) or 'nothing'}; known are the mean and the first token")
    return modes == ["pooling_mode_cls_token"]
