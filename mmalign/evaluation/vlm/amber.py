"""AMBER (arXiv 2311.07397): descriptions (CHAIR, Cover, Hal, Cog) and questions to be answered with yes or no.

Official rules as in junyangwang0410/AMBER, ``inference.py`` and ``data/metrics.txt``. Of descriptions (lines 90-171 and
258-267), with counters of things that start at .001: CHAIR = unsafe nouns / nouns of the vocabulary, Cover = objects
there that are named / objects there, Hal = descriptions with an unsafe noun, Cog = words of the list of likely
hallucinations that are named. Of questions see :mod:`mmalign.evaluation.vlm.amber_questions`.
AMBER score = (100 - CHAIR + F1) / 2 (section 4 of the paper), where both parts were answered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmalign.evaluation.vlm import amber_questions
from mmalign.evaluation.vlm.amber_files import AmberData, AmberTruth
from mmalign.evaluation.vlm.amber_questions import EPSILON, percent
from mmalign.evaluation.vlm.measures import Measure, MeasureGroup, Tally, TallyBuilder, compare_tallies, ratio
from mmalign.evaluation.vlm.records import Question
from mmalign.evaluation.vlm.result import Example, VLMEvaluation, choose_examples
from mmalign.evaluation.vlm.text_tools import TextTools
from mmalign.evaluation.vlm.yes_no import AMBER_READERS, Rules

RULES: tuple[Rules, ...] = ("official", "strict")
_COUNTS = ("unsafe", "nouns", "covered", "there", "likely named", "likely", "clean", "descriptions", "words")


@dataclass(frozen=True)
class Reading:
    """A description against what is there. ``nouns``: of the vocabulary, in order; ``unsafe``: those that are not
    there; ``covered`` and ``likely``: places in the lists of what is there, and of likely hallucinations, that were
    named."""

    nouns: tuple[str, ...]
    unsafe: tuple[str, ...]
    covered: frozenset[int]
    likely: frozenset[int]


def read_description(text: str, truth: AmberTruth, data: AmberData, tools: TextTools) -> Reading:
    """Official rules, for each noun of the vocabulary (``inference.py:118-161``).

    A safe word counts for nothing. A noun that equals an object there, or a word associated with one, covers it. Else
    it names the likely hallucination that it equals, and the first one that it is similar to; and it covers the first
    object or associated word that it is similar to, or is unsafe. Of lists, associated words come first.
    """
    there, likely = data.words_around(truth.truth), data.words_around(truth.likely)
    nouns = [noun for noun in tools.nouns(text) if noun in data.vocabulary]
    covered: set[int] = set()
    named: set[int] = set()
    unsafe = []
    for noun in nouns:
        if noun in data.safe_words:
            continue
        equal = _first(there, noun)
        if equal is not None:
            covered.add(equal)
            continue
        named |= {place for place in (_first(likely, noun), _first(likely, noun, tools)) if place is not None}
        similar = _first(there, noun, tools)
        if similar is None:
            unsafe.append(noun)
        else:
            covered.add(similar)
    return Reading(tuple(nouns), tuple(unsafe), frozenset(covered), frozenset(named))


def _first(words: Sequence[tuple[str, int]], noun: str, tools: TextTools | None = None) -> int | None:
    """The place of the object behind the first word that equals ``noun``, or is similar to it."""
    for word, place in words:
        if tools.similar(noun, word) if tools else noun == word:
            return place
    return None


def evaluate_amber(
    questions: Sequence[Question],
    base: Sequence[str],
    aligned: Sequence[str],
    data: AmberData,
    tools: TextTools,
    *,
    rules: Sequence[Rules] = RULES,
    names: tuple[str, str] = ("base", "aligned"),
    settings: Mapping[str, str] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> VLMEvaluation:
    """Both models' answers in the order of ``questions`` (descriptions, yes-or-no questions, or both)."""
    truths = [data.truth_of(question.key) for question in questions]
    sections = []
    for rule in rules:
        tallies = [_tally(questions, truths, answers, data, tools, rule) for answers in (base, aligned)]
        groups = _groups(truths, rule, tools)
        sections += compare_tallies(tallies[0], tallies[1], groups, bootstrap=bootstrap, seed=seed)
    asked = amber_questions.unread_notes(questions, truths, {names[0]: base, names[1]: aligned})
    return VLMEvaluation(
        benchmark="AMBER",
        base=names[0],
        aligned=names[1],
        n_pictures=len({question.image for question in questions}),
        n_questions=len(questions),
        sections=sections,
        settings={**(settings or {}), "text tools": tools.description},
        notes=[*asked, *_tool_notes(truths, tools)],
        examples=choose_examples(_examples(questions, truths, (base, aligned), data, tools, rules[0])),
        bootstrap=bootstrap,
        seed=seed,
    )


def _tally(
    questions: Sequence[Question],
    truths: Sequence[AmberTruth],
    answers: Sequence[str],
    data: AmberData,
    tools: TextTools,
    rule: Rules,
) -> Tally:
    builder = TallyBuilder([question.image for question in questions], [*_COUNTS, *amber_questions.COUNTS])
    for question, truth, text in zip(questions, truths, answers, strict=True):
        if not truth.is_generative:
            for name, amount in amber_questions.counts_of(truth, text, rule).items():
                builder.add(question.image, name, amount)
            continue
        found = read_description(text, truth, data, tools)
        amounts = {
            "unsafe": len(found.unsafe),
            "nouns": len(found.nouns),
            "covered": len(found.covered),
            "there": len(truth.truth),
            "likely named": len(found.likely),
            "likely": len(truth.likely),
            "clean": not found.unsafe,
            "descriptions": 1,
            "words": len(text.split()),
        }
        for name, amount in amounts.items():
            builder.add(question.image, name, amount)
    return builder.tally()


def _groups(truths: Sequence[AmberTruth], rule: Rules, tools: TextTools) -> list[MeasureGroup]:
    described = any(truth.is_generative for truth in truths)
    asked = any(not truth.is_generative for truth in truths)
    groups = []
    # Strict rules differ in what counts as yes or no; descriptions are the same under both.
    if described and rule == "official":
        groups.append(MeasureGroup("descriptions", rule if tools.name == "nltk" else "exact words", _descriptions()))
    if asked:
        groups += amber_questions.groups(truths, rule)
    if described and asked and rule == "official":
        measure = Measure("AMBER score", _score, "higher", "number", point=_official_score)
        groups.append(MeasureGroup("both parts", rule if tools.name == "nltk" else "exact words", (measure,)))
    return groups


def _descriptions() -> tuple[Measure, ...]:
    def share(top: str, bottom: str):
        return {
            "value": lambda counts: ratio(counts[top], counts[bottom] + EPSILON),
            "point": lambda counts: percent(counts[top] / (counts[bottom] + EPSILON)) / 100,
        }

    return (
        Measure("CHAIR", better="lower", **share("unsafe", "nouns")),
        Measure("Cover", better="higher", **share("covered", "there")),
        Measure(
            "Hal",
            lambda counts: 1 - ratio(counts["clean"], counts["descriptions"] + EPSILON),
            "lower",
            point=lambda counts: round(100 - counts["clean"] / (counts["descriptions"] + EPSILON) * 100, 1) / 100,
        ),
        Measure("Cog", better="lower", **share("likely named", "likely")),
        Measure("nouns per description", lambda counts: ratio(counts["nouns"], counts["descriptions"]), unit="number"),
        Measure("words per description", lambda counts: ratio(counts["words"], counts["descriptions"]), unit="number"),
    )


def _score(counts):
    chair = ratio(counts["unsafe"], counts["nouns"] + EPSILON)
    return (100 - 100 * chair + 100 * amber_questions.f1_of(counts, "all")) / 2


def _official_score(counts: Mapping[str, float]) -> float:
    chair = percent(counts["unsafe"] / (counts["nouns"] + EPSILON))
    return (100 - chair + amber_questions.official_f1(counts, "all")) / 2


def _tool_notes(truths: Sequence[AmberTruth], tools: TextTools) -> list[str]:
    if tools.name == "nltk" or not any(truth.is_generative for truth in truths):
        return []
    return [
        "Descriptions were read with the built-in text tools: any word of the vocabulary counts, and words are alike "
        "only if they are equal. Such numbers compare these two models, and not with published ones, which need "
        "--text-tools nltk."
    ]


def _examples(
    questions: Sequence[Question],
    truths: Sequence[AmberTruth],
    answers: tuple[Sequence[str], Sequence[str]],
    data: AmberData,
    tools: TextTools,
    rule: Rules,
) -> list[Example]:
    found = []
    for question, truth, *said in zip(questions, truths, *answers, strict=True):
        if truth.is_generative:
            unsafe = [read_description(text, truth, data, tools).unsafe for text in said]
            verdicts, gain = (
                [", ".join(words) or "nothing made up" for words in unsafe],
                len(unsafe[0]) - len(unsafe[1]),
            )
        else:
            right = [AMBER_READERS[rule](text) == truth.label for text in said]
            verdicts, gain = ["right" if one else "wrong" for one in right], right[1] - right[0]
        if gain:
            shown = truth.label or ", ".join(truth.truth)
            found.append(Example(question.text, question.image, shown, *said, *verdicts, gain=gain))
    return found
