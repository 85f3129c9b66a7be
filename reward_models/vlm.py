"""A vision-language model of transformers that is asked about pictures: probabilities of answers, and answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from mmalign.data.decoding import refuse_size, upright_rgb
from reward_models.weights import find_device, find_dtype


class AskedModel:
    """``folder``: a VLM as ``save_pretrained`` leaves it, with its processor. Asked in batches, padded on the left.

    Decoder-only models (LLaVA, Qwen-VL, ...) and encoder-decoders (T5-based ones) both work.
    """

    def __init__(self, folder: Path, *, device: str | None, dtype: str) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} is no folder of a vision-language model: it has no config.json")
        self.device, self.dtype = find_device(device), find_dtype(dtype)
        self.processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=self.dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        model, info = loaded
        wrong = {key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
        if wrong:
            told = "; ".join(
                f"{len(names)} {key.replace('_', ' ')}, such as {names[0]}" for key, names in wrong.items()
            )
            raise ValueError(f"{folder}: the weights are not those of the model its config.json describes: {told}")
        self.model: Any = model.to(self.device).eval().requires_grad_(False)
        self.tokenizer: Any = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.decodes_only = not self.model.config.is_encoder_decoder

    def answer_logps(
        self, questions: Sequence[str], images: Sequence[Sequence[Image.Image]], answers: Sequence[str]
    ) -> Float[Tensor, "batch answers"]:
        """log p(answer | pictures, question), mean over the answer's tokens, for each of the same ``answers``.

        The tokens of an answer are those it has right after the question; an encoder-decoder's end token counts, as in
        VQAScore.
        """
        inputs = self._inputs(questions, images)
        ids = [self._answer_ids(answer) for answer in answers]
        with torch.no_grad():
            return torch.stack([self._answer_logp(inputs, answer) for answer in ids], dim=-1)

    def answers(
        self, questions: Sequence[str], images: Sequence[Sequence[Image.Image]], *, max_tokens: int = 32
    ) -> list[str]:
        """What the model says, greedily."""
        inputs = self._inputs(questions, images)
        with torch.no_grad():
            ids = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        if self.decodes_only:
            ids = ids[:, inputs["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def _inputs(self, questions: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> dict[str, Tensor]:
        pictures = [[_upright(number, image) for image in group] for number, group in enumerate(images)]
        texts = [self._prompt(question, len(group)) for question, group in zip(questions, pictures, strict=True)]
        made = self.processor(text=texts, images=pictures, padding=True, return_tensors="pt").to(self.device)
        return {name: value.to(self.dtype) if value.is_floating_point() else value for name, value in made.items()}

    def _prompt(self, question: str, pictures: int) -> str:
        if getattr(self.processor, "chat_template", None) is None:
            return question
        content = [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _answer_ids(self, answer: str) -> Tensor:
        ids = self.tokenizer(answer, add_special_tokens=not self.decodes_only).input_ids
        if not ids:
            raise ValueError(f"the answer {answer!r} has no tokens in this model's vocabulary")
        return torch.tensor(ids, device=self.device)

    def _answer_logp(self, inputs: dict[str, Tensor], answer: Tensor) -> Tensor:
        batch, length = inputs["input_ids"].shape[0], len(answer)
        labels = answer.expand(batch, -1)
        if self.decodes_only:
            # Token ids are joined, not texts: how an answer splits into tokens cannot depend on what stands before it.
            width = inputs["input_ids"].shape[1]
            longer = {
                name: pad(value, (0, length), value=int(name == "attention_mask"))
                if value.shape == (batch, width)
                else value
                for name, value in inputs.items()
            }
            longer["input_ids"] = torch.cat([inputs["input_ids"], labels], dim=-1)
            logits = self.model(**longer).logits[:, -length - 1 : -1]
        else:
            logits = self.model(**inputs, labels=labels).logits
        logps = logits.float().log_softmax(-1).gather(-1, labels[..., None])[..., 0]
        return logps.mean(-1)


def _upright(number: int, image: Image.Image) -> Image.Image:
    refuse_size(f"picture {number}", *image.size)
    return upright_rgb(image)
