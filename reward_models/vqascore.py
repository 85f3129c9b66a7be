"""VQAScore = p("Yes" | picture, 'Does this figure show "PROMPT"? Please answer yes or no.'); arXiv 2404.01291.

exp of the mean log-probability of the answer's tokens, for each picture on its own (linzhiqiu/t2v_metrics 3.0,
clip_t5_model.py; Apache-2.0). The published numbers are those of CLIP-FlanT5-XXL, which transformers has no class for;
any vision-language model in a local folder gives a score of the same form, and its folder's name is in ``version``.
"""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reward_models.cosine import in_batches
from reward_models.vlm import AskedModel

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
ANSWER = "Yes"


class VQAScore:
    """``weights``: folder of a vision-language model. ``question`` holds ``{}`` for the prompt."""

    name = "vqascore"
    scale = "probability of the answer, 0 to 1"
    prompt_limit: int | None = None

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
        question: str = QUESTION,
        answer: str = ANSWER,
    ) -> None:
        folder = local_folder(self.name, weights)
        if "{}" not in question:
            raise ValueError(f"question={question!r} has no {{}} where the prompt goes")
        self.asked = AskedModel(folder, device=device, dtype=dtype)
        self.question, self.answer, self.batch_size = question, answer, batch_size
        self.version = f"{folder.name}, {question!r}, {answer!r}"
        self.source, self.licence = str(folder), "that of the model"

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        """Probabilities, ``batch_size`` pictures at a time."""
        return in_batches(self._probabilities, prompts, images, self.batch_size, self.asked.device)

    def _probabilities(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        questions = [self.question.replace("{}", prompt) for prompt in prompts]
        return self.asked.answer_logps(questions, [[image] for image in images], [self.answer])[:, 0].exp()


def local_folder(name: str, weights: str | Path | None) -> Path:
    """The folder of the model to ask; ValueError where none is named: there is no default one."""
    if weights is None:
        raise ValueError(
            f"reward {name!r} asks a vision-language model of your choice; give its folder: weights=FOLDER, or on "
            f"the command line --weights {name}=FOLDER. Get one: hf download llava-hf/llava-1.5-7b-hf"
        )
    return Path(weights).expanduser()
