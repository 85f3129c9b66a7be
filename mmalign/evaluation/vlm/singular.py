"""English plurals to singulars as the official CHAIR script makes them, mistakes included.

That script (LisaAnne/Hallucination, ``utils/chair.py:107``) calls ``singularize`` of the library pattern 3.6
(clips/pattern, ``pattern/text/en/inflect.py:602-636``), and its numbers depend on what that gets wrong:
``glass`` becomes ``glas`` (which is why ``wine glas`` is one of the double words), ``bus`` becomes ``bu`` and is no bus
any more, ``ties`` becomes ``ty``. What an ending becomes is written down here as endings, letters to cut and to add.
"""

from dataclasses import dataclass
from functools import lru_cache


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# A word that one of these ends with stays as it is; so ``as`` (christmas) and ``rice`` do, as in the original.
_KEPT = _words(
    """bison bream breeches britches carp chassis christmas clippers cod contretemps corps debris diabetes djinn eland
    elk flounder gallows georgia graffiti headquarters herpes high-jinks homework innings jackanapes mackerel measles
    mews mumps news pincers pliers proceedings rabies salmon scissors series shears species swine swiss trout tuna
    whiting wildebeest advice bread butter cheese electricity equipment fruit furniture garbage gravel happiness
    information ketchup knowledge love luggage mathematics mayonnaise meat mustard progress research rice sand software
    understanding water"""
)
# The plurals of these stay plurals: ``cookies`` is not made a ``cookie``.
_KEPT_PLURALS = tuple(
    f"{word}s"
    for word in _words(
        """alergie auntie beanie birdie bogie bombie collie cookie cutie doggie eyrie freebie goonie groupie hankie
        hippie hoagie hottie indie junkie laddie laramie lingerie meanie newbie nightie oldie pixie quickie reverie
        rookie softie sortie stoolie sweetie techie toughie valkyrie veggie weenie yuppie zombie"""
    )
)
# A word that ends with the left one ends with the right one instead; ``hour`` becomes ``hmy`` by the last of them.
_IRREGULAR = dict(
    pair.split(":", 1)  # type: ignore[misc]
    for pair in _words(
        """atlantes:atlas atlases:atlas axes:axe beeves:beef brethren:brother children:child corpora:corpus
        corpuses:corpus ephemerides:ephemeris feet:foot ganglia:ganglion geese:goose genera:genus genii:genie
        graffiti:graffito helves:helve kine:cow leaves:leaf loaves:loaf men:man mongooses:mongoose monies:money
        moves:move mythoi:mythos numena:numen occipita:occiput octopodes:octopus opera:opus opuses:opus oxen:ox
        penes:penis penises:penis people:person sexes:sex soliloquies:soliloquy teeth:tooth testes:testis
        trilbys:trilby turves:turf zoa:zoon our:my"""
    )
)
_BETWEEN = _words(
    """about above across after among around at athwart before behind below beneath beside besides between betwixt
    beyond but by during except for from in into near of off on onto out over since till to under until unto upon
    with"""
)


@dataclass(frozen=True)
class _Ending:
    """Words with one of ``endings`` lose ``cut`` letters and get ``add``. ``before``: letters that the one before the
    ending must be of (``not_before``: must not be of); either asks for a letter to be there."""

    endings: tuple[str, ...]
    cut: int
    add: str = ""
    before: str | None = None
    not_before: str | None = None

    def fits(self, word: str) -> bool:
        """Whether the word ends so."""
        for ending in self.endings:
            if not word.endswith(ending):
                continue
            letter = word[-len(ending) - 1 : -len(ending)]
            if self.before is None and self.not_before is None:
                return True
            if letter and (self.before is None or letter in self.before) and letter not in (self.not_before or ""):
                return True
        return False


def _ending(endings: str, cut: int, add: str = "", **neighbours: str) -> _Ending:
    return _Ending(tuple(endings.split()), cut, add, **neighbours)


# The first that fits decides.
_ENDINGS = (
    _ending("ae", 1, not_before=""),
    _ending("itis", 0, not_before=""),
    _ending("eaux", 1, not_before=""),
    _ending("quizzes", 3),
    _ending("matrices", 3, "x"),
    _ending("apices vertices indices", 4, "ex"),
    _ending("aliases statuses", 2),
    _ending("i", 1, "us", before="octp|vir"),
    _ending("crises axes testes", 2, "is"),
    _ending("shoes", 1),
    _ending("oes buses xes ches sses shes", 2),
    _ending("ice", 3, "ouse", before="m|l"),
    _ending("movies", 1),
    _ending("ombies", 1, not_before=""),
    _ending("series", 0),
    _ending("ies", 3, "y", not_before="aeiouy"),
    _ending("quies", 3, "y"),
    _ending("alves elves olves", 3, "f"),
    _ending("eaves", 3, "f", not_before="d"),
    _ending("arves", 3, "f"),
    _ending("erves", 1),
    _ending("nives lives wives", 3, "fe"),
    _ending("lves rves", 3, "f"),
    _ending("aves eves oves sives tives hives", 1),
    _ending("ves", 3, "fe", not_before="f"),
    _ending("analyses bases diagnoses parentheses prognoses synopses theses", 2, "is"),
    _ending("opses yses", 2, "is", not_before=""),
    _ending("hoses doses roses ooses noses boses closes poses", 1),
    _ending("oses", 2, "is", not_before=""),
    _ending("ta ia", 1, "um"),
    _ending("news", 0),
    _ending("s", 1),
)


@lru_cache(maxsize=100_000)
def singular(word: str) -> str:
    """The singular of a word in lower case by the rules of pattern 3.6; ``singular("glass") == "glas"``."""
    parts = word.split("-")
    if len(parts) > 1 and parts[1] in _BETWEEN:
        return "-".join([singular(parts[0]), *parts[1:]])
    if word.endswith("'"):
        return singular(word[:-1]) + "'s"
    if any(kept.endswith(word) for kept in _KEPT) or word.endswith(_KEPT_PLURALS):
        return word
    for plural, one in _IRREGULAR.items():
        if word.endswith(plural):
            return word[: -len(plural)] + one
    for ending in _ENDINGS:
        if ending.fits(word):
            return word[: len(word) - ending.cut] + ending.add
    return word
