"""CHAIR (arXiv 1809.02156): the share of captions, and of mentions in them, that name objects that are not there.

Official rules as in LisaAnne/Hallucination, ``utils/chair.py``: an object is there if it has a mask or one of the five
human captions names it (136-184); CHAIRs = captions with a hallucinated mention / captions, CHAIRi = hallucinated
mentions / mentions (224-260), a word said twice counted twice. Recall is not in the script and is asked for since then:
different objects that are there and were mentioned / objects that are there, over all captions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmalign.evaluation.vlm.chair_words import (
    Mention,
    Rules,
    Vocabulary,
    double_words,
    mentions,
    read_double_words,
    read_synonyms,
)
from mmalign.evaluation.vlm.coco import read_ground_truth
from mmalign.evaluation.vlm.measures import Measure, MeasureGroup, Tally, TallyBuilder, compare_tallies, ratio
from mmalign.evaluation.vlm.records import Question, coco_id
from mmalign.evaluation.vlm.result import Example, VLMEvaluation, choose_examples

RULES: tuple[Rules, ...] = ("official", "corrected")
_COUNTS = ("captions", "hallucinated captions", "mentions", "hallucinated", "there", "found", "words")
_MEASURES = (
    Measure("CHAIRs", lambda counts: ratio(counts["hallucinated captions"], counts["captions"]), "lower"),
    Measure("CHAIRi", lambda counts: ratio(counts["hallucinated"], counts["mentions"]), "lower"),
    Measure("object recall", lambda counts: ratio(counts["found"], counts["there"]), "higher"),
    Measure("mentions per caption", lambda counts: ratio(counts["mentions"], counts["captions"]), unit="number"),
    Measure("words per caption", lambda counts: ratio(counts["words"], counts["captions"]), unit="number"),
)


@dataclass(frozen=True)
class ChairJudge:
    """What is there, and how captions are read, under one rule."""

    rules: Rules
    vocabulary: Vocabulary
    truth: Mapping[int, frozenset[str]]
    tokenize: Callable[[str], list[str]]

    def read(self, caption: str) -> list[Mention]:
        """Objects that a caption mentions."""
        return mentions(caption, self.vocabulary, self.tokenize, self.rules)

    def hallucinated(self, image: int, caption: str) -> list[Mention]:
        """Mentions of objects that are not there."""
        return [mention for mention in self.read(caption) if mention.name not in self.truth[image]]


def chair_judge(
    annotations: Path,
    synonyms: Path,
    questions: Sequence[Question],
    tokenize: Callable[[str], list[str]],
    *,
    rules: Rules = "official",
    script: Path | None = None,
) -> ChairJudge:
    """Reads COCO's annotations in ``annotations`` for the pictures of ``questions``; human captions by the same rules.

    ``script``: the official ``chair.py`` to take the double words from, instead of the ones written down here.
    """
    classes = read_synonyms(synonyms, rules)
    vocabulary = Vocabulary(classes, read_double_words(script) if script else double_words())
    images = {coco_id(question.image, f"question {question.key}") for question in questions}

    def mentioned(caption: str) -> set[str]:
        return {mention.name for mention in mentions(caption, vocabulary, tokenize, rules)}

    truth = read_ground_truth(annotations, images, classes, mentioned)
    return ChairJudge(rules, vocabulary, truth, tokenize)


def evaluate_chair(
    judges: Sequence[ChairJudge],
    questions: Sequence[Question],
    base: Sequence[str],
    aligned: Sequence[str],
    *,
    names: tuple[str, str] = ("base", "aligned"),
    settings: Mapping[str, str] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> VLMEvaluation:
    """Both models' captions in the order of ``questions``, under the rule of each judge; examples by the first."""
    sections = []
    for judge in judges:
        tallies = [_tally(judge, questions, captions) for captions in (base, aligned)]
        group = MeasureGroup("captions", judge.rules, _MEASURES)
        sections += compare_tallies(tallies[0], tallies[1], [group], bootstrap=bootstrap, seed=seed)
    return VLMEvaluation(
        benchmark="CHAIR",
        base=names[0],
        aligned=names[1],
        n_pictures=len({question.image for question in questions}),
        n_questions=len(questions),
        sections=sections,
        settings=dict(settings or {}),
        notes=_notes(questions),
        examples=choose_examples(_examples(judges[0], questions, base, aligned)),
        bootstrap=bootstrap,
        seed=seed,
    )


def _tally(judge: ChairJudge, questions: Sequence[Question], captions: Sequence[str]) -> Tally:
    builder = TallyBuilder([question.image for question in questions], _COUNTS)
    for question, caption in zip(questions, captions, strict=True):
        image = coco_id(question.image, f"question {question.key}")
        said, truth = judge.read(caption), judge.truth[image]
        wrong = sum(mention.name not in truth for mention in said)
        amounts = {
            "captions": 1,
            "hallucinated captions": wrong > 0,
            "mentions": len(said),
            "hallucinated": wrong,
            "there": len(truth),
            "found": len({mention.name for mention in said} & truth),
            "words": len(caption.split()),
        }
        for name, amount in amounts.items():
            builder.add(question.image, name, amount)
    return builder.tally()


def _notes(questions: Sequence[Question]) -> list[str]:
    prompts = sorted({question.text for question in questions})
    return [f"Asked: {prompts[0]!r}" + (f" and {len(prompts) - 1} other prompts" if prompts[1:] else "")]


def _examples(
    judge: ChairJudge, questions: Sequence[Question], base: Sequence[str], aligned: Sequence[str]
) -> list[Example]:
    found = []
    for question, *captions in zip(questions, base, aligned, strict=True):
        image = coco_id(question.image, f"question {question.key}")
        wrong = [judge.hallucinated(image, caption) for caption in captions]
        if len(wrong[0]) != len(wrong[1]):
            verdicts = [", ".join(mention.word for mention in one) or "nothing made up" for one in wrong]
            truth = ", ".join(sorted(judge.truth[image]))
            gain = len(wrong[0]) - len(wrong[1])
            found.append(Example(question.text, question.image, truth, *captions, *verdicts, gain=gain))
    return found
