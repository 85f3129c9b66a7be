"""What a vision-language model answers: greedy, in batches, through the processor's own chat template."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

Decoding = Callable[[Any, Any, Sequence[str], int], list[Any]]
"""(model, processor, questions, tokens of a padded prompt) -> logits processors of ``generate`` for that batch."""


@torch.no_grad()
def greedy_answers(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
    decoding: Decoding | None = None,
) -> list[str]:
    """The answer to each question about its picture, without special tokens, cut after ``max_new_tokens``.

    Prompts are padded on the left, whatever the processor's habit is. ``progress`` is called with the number of answers
    just given. ``decoding`` changes what the likeliest token is (M3ID, say). The model's training mode is restored.
    """
    if len(images) != len(questions):
        raise ValueError(f"got {len(images)} pictures and {len(questions)} questions; pass one picture per question")
    was_training = model.training
    model.eval()
    answers: list[str] = []
    for start in range(0, len(questions), batch_size):
        batch = slice(start, start + batch_size)
        answers += _answer_batch(model, processor, images[batch], questions[batch], max_new_tokens, decoding)
        if progress is not None:
            progress(len(questions[batch]))
    model.train(was_training)
    return answers


def _answer_batch(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    max_new_tokens: int,
    decoding: Decoding | None,
) -> list[str]:
    texts = [_prompt(processor, question) for question in questions]
    begin = processor.tokenizer.bos_token
    # A template that begins with the begin token itself must not get a second one.
    special = not (begin and texts[0].startswith(begin))
    inputs = processor(
        text=texts,
        images=[[image] for image in images],
        padding=True,
        padding_side="left",
        add_special_tokens=special,
        return_tensors="pt",
    ).to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    length = inputs["input_ids"].shape[1]
    changed = {} if decoding is None else {"logits_processor": decoding(model, processor, questions, length)}
    generated = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, **changed)
    new = generated[:, length:]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


def _prompt(processor: Any, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
