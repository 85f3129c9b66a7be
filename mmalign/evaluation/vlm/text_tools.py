"""What CHAIR and AMBER need of language processing: words, nouns, and how alike two words are.

Both official scripts use nltk, AMBER also spaCy's word vectors; neither comes with mmalign, and their data has to be
downloaded once. ``builtin_tools`` need nothing and are enough for CHAIR; for AMBER's generative part they give a
measure of its own: a noun is then any word of the benchmark's vocabulary, and words are alike only if they are equal.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal

from mmalign.evaluation.vlm.singular import singular

ToolsName = Literal["builtin", "nltk"]
SPACY_MODEL = "en_core_web_lg"
SIMILARITY = 0.8

_SPLIT = r",:;@#$%&?!\[\](){}<>\"“”«»‘’`"
# A comma or colon between digits stays inside its number.
_CHUNK = re.compile(rf"(?:[^\s{_SPLIT}]|(?<=\d)[,:](?=\d))+|[{_SPLIT}]")
_CONTRACTION = re.compile(r"(.+?)(n't|'(?:s|m|d|ll|re|ve))")


@dataclass(frozen=True)
class TextTools:
    """``tokenize`` a text; ``nouns`` of a text; ``similar``: are two words alike. ``description`` goes into results."""

    name: str
    description: str
    tokenize: Callable[[str], list[str]]
    nouns: Callable[[str], list[str]]
    similar: Callable[[str, str], bool]


def find_tools(name: ToolsName, *, vectors: bool) -> TextTools:
    """``builtin``, or ``nltk`` (``vectors``: with spaCy's vectors, which AMBER asks for, loaded too)."""
    if name == "builtin":
        return builtin_tools()
    if name == "nltk":
        return nltk_tools(vectors=vectors)
    raise ValueError(f"text tools {name!r} are unknown; choose builtin or nltk")


def builtin_tools() -> TextTools:
    """Words by the conventions of the Penn Treebank, every word a noun in the singular, alike only if equal."""
    return TextTools(
        "builtin",
        "built-in: Penn Treebank words, every word in the singular is taken for a noun, no word vectors",
        tokenize,
        lambda text: [singular(word) for word in tokenize(text.lower())],
        lambda first, second: first == second,
    )


def tokenize(text: str) -> list[str]:
    """Words and signs as ``nltk.word_tokenize`` parts them.

    One difference: nltk keeps the period of abbreviations it has learned (``dr.``); here every final period is a token.
    """
    words: list[str] = []
    for chunk in _CHUNK.findall(text):
        for part in re.split(r"(--+|\.\.+)", chunk):
            words += _parts(part)
    return words


def _parts(part: str) -> list[str]:
    """A piece without spaces, its quotes, its final period and its contraction apart."""
    if not part or re.fullmatch(r"--+|\.\.+|.", part):
        return [part] if part else []
    if part.endswith((".", "'")) and not _CONTRACTION.fullmatch(part):
        return [*_parts(part[:-1]), part[-1]]
    found = _CONTRACTION.fullmatch(part)
    if found:
        return [*_parts(found[1]), found[2]]
    if part.startswith("'"):
        return ["'", *_parts(part[1:])]
    return [part]


def nltk_tools(*, vectors: bool) -> TextTools:
    """The official scripts' own tools; ValueError that says what to install or to download where something is missing.

    AMBER (junyangwang0410/AMBER, ``inference.py``): nouns are words tagged NN*, lemmatised (lines 32-37), alike where
    the cosine of their vectors is above 0.8 (lines 25-29).
    """
    try:
        nltk: Any = import_module("nltk")
    except ImportError as error:
        raise ValueError(
            "text tools nltk need the package nltk, which is not installed: pip install 'mmalign[amber]'"
        ) from error
    lemmatizer = nltk.stem.WordNetLemmatizer()

    def nouns(text: str) -> list[str]:
        tagged = nltk.pos_tag(nltk.word_tokenize(text))
        return [lemmatizer.lemmatize(word) for word, tag in tagged if tag.startswith("NN")]

    try:
        # A word through everything that will be used: what is missing is better said now than after an hour.
        nouns("Two dogs.") if vectors else nltk.word_tokenize("Two dogs.")
    except LookupError as error:
        wanted = "punkt_tab averaged_perceptron_tagger_eng wordnet" if vectors else "punkt_tab"
        raise ValueError(
            f"nltk is installed without its data: run `python -m nltk.downloader {wanted}` once, or copy the folder "
            "nltk_data of a machine that has it into your home folder (or where NLTK_DATA points)"
        ) from error
    return TextTools(
        "nltk",
        f"nltk {nltk.__version__}" + (f" and spaCy {SPACY_MODEL}, alike above {SIMILARITY}" if vectors else ""),
        nltk.word_tokenize,
        nouns,
        _vector_similarity() if vectors else lambda first, second: first == second,
    )


def _vector_similarity() -> Callable[[str, str], bool]:
    try:
        spacy: Any = import_module("spacy")
    except ImportError as error:
        raise ValueError(
            "AMBER's rules compare words by spaCy's vectors, and spaCy is not installed: pip install 'mmalign[amber]', "
            f"then `python -m spacy download {SPACY_MODEL}`"
        ) from error
    try:
        nlp: Any = spacy.load(SPACY_MODEL)
    except OSError as error:
        raise ValueError(
            f"spaCy is installed without its model {SPACY_MODEL}: run `python -m spacy download {SPACY_MODEL}` once, "
            "or install its wheel from the releases of explosion/spacy-models"
        ) from error
    document = cache(nlp)

    @cache
    def similar(first: str, second: str) -> bool:
        return document(first).similarity(document(second)) > SIMILARITY

    return similar
