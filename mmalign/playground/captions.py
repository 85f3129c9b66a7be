"""The caption grammar: :func:`caption` says what a scene shows, :func:`parse` reads it back, exactly.

single    a large striped red circle on a white background
pair      a solid red circle and a solid blue star on a navy background
trio      a solid red circle and a solid blue star and a solid pink heart on a black background
count     three hollow green squares on a cream background
relation  a solid red circle left of a solid blue star on a grey background
"""

import re

import numpy as np

from mmalign.playground.scene import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    RELATIONS,
    SHAPES,
    SIZES,
    STYLES,
    Scene,
    Thing,
    arrange,
)

TEMPLATES = (
    "{things} on a {background} background",
    "a picture of {things} on a {background} background",
    "a {background} background with {things}",
    "{things} in front of a {background} background",
)
"""The first is the canonical one."""

COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
PLURALS = {shape: "crosses" if shape == "cross" else shape + "s" for shape in SHAPES}


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """What the scene shows in words: the canonical sentence, or with ``rng`` one of the templates at random."""
    template = TEMPLATES[0 if rng is None else int(rng.integers(len(TEMPLATES)))]
    return template.format(things=_say_things(scene), background=scene.background)


def parse(text: str) -> Scene:
    """The scene a caption describes, in its canonical arrangement: ``parse(caption(s)).attributes == s.attributes``.

    Upper case, extra spaces and a closing full stop do not matter. What the grammar cannot say is a ValueError.
    """
    plain = " ".join(text.lower().split()).removesuffix(".")
    for pattern in _PATTERNS:
        match = pattern.fullmatch(plain)
        if match is not None:
            scene = _read_things(match["things"], match["background"])
            if scene is not None:
                return arrange(scene)
    raise ValueError(_complaint(text, plain))


def words() -> list[str]:
    """Every word the grammar can say, sorted: the tokenizer's vocabulary."""
    fixed = " ".join(TEMPLATES).format(things="a and", background="")
    listed = [*SHAPES, *PLURALS.values(), *COLOURS, *SIZES, *BACKGROUNDS, *STYLES, *COUNT_WORDS.values(), *RELATIONS]
    return sorted(set(" ".join([fixed.replace("{}", " "), *listed]).split()))


def _say_things(scene: Scene) -> str:
    first = scene.things[0]
    if scene.level == "single":
        return f"a {first.size} {scene.style} {first.colour} {first.shape}"
    if scene.level == "count":
        return f"{COUNT_WORDS[len(scene.things)]} {scene.style} {first.colour} {PLURALS[first.shape]}"
    joint = f" {scene.relation} " if scene.relation else " and "
    return joint.join(f"a {scene.style} {thing.colour} {thing.shape}" for thing in scene.things)


def _any(options: tuple[str, ...]) -> str:
    return "(" + "|".join(options) + ")"


_PATTERNS = [
    re.compile(template.format(things="(?P<things>.+)", background="(?P<background>" + "|".join(BACKGROUNDS) + ")"))
    for template in TEMPLATES
]
_ONE = re.compile(f"a {_any(SIZES)} {_any(STYLES)} {_any(COLOURS)} {_any(SHAPES)}")
_SOME = re.compile(
    f"{_any(tuple(COUNT_WORDS.values()))} {_any(STYLES)} {_any(COLOURS)} {_any(tuple(PLURALS.values()))}"
)
_EACH = re.compile(f"a {_any(STYLES)} {_any(COLOURS)} {_any(SHAPES)}")
_JOINT = re.compile(f" {_any(('and', *RELATIONS))} ")


def _read_things(text: str, background: str) -> Scene | None:
    """The scene of a noun phrase, or None where the phrase is outside of the grammar."""
    if match := _ONE.fullmatch(text):
        size, style, colour, shape = match.groups()
        return Scene("single", (Thing(shape, colour, size),), background, style)
    if match := _SOME.fullmatch(text):
        number, style, colour, plural = match.groups()
        shape = next(shape for shape in SHAPES if PLURALS[shape] == plural)
        count = next(count for count in COUNTS if COUNT_WORDS[count] == number)
        return Scene("count", (Thing(shape, colour, "small"),) * count, background, style)
    pieces = _JOINT.split(text)
    each = [_EACH.fullmatch(piece) for piece in pieces[0::2]]
    joints = pieces[1::2]
    matches = [match for match in each if match is not None]
    styles = {match[1] for match in matches}
    if len(matches) != len(each) or len(styles) != 1 or len(matches) not in (2, 3):
        return None
    things = tuple(Thing(match[3], match[2], "small") for match in matches)
    if set(joints) == {"and"}:
        return Scene("pair" if len(things) == 2 else "trio", things, background, styles.pop())
    if len(things) == 2:
        return Scene("relation", things, background, styles.pop(), joints[0])
    return None


def _complaint(text: str, plain: str) -> str:
    unknown = [word for word in dict.fromkeys(plain.split()) if word not in words()]
    problem = f"unknown words: {', '.join(unknown)}" if unknown else "the words are known, their order is not"
    return (
        f"cannot read the caption {text!r} ({problem}). Captions read like 'a large striped red circle on a white "
        f"background', 'two solid blue stars on a navy background' or 'a solid red circle left of a solid blue star on "
        f"a grey background'. Sizes: {', '.join(SIZES)}; styles: {', '.join(STYLES)}; colours: {', '.join(COLOURS)}; "
        f"shapes: {', '.join(SHAPES)}; backgrounds: {', '.join(BACKGROUNDS)}; relations: {', '.join(RELATIONS)}; "
        f"counts: {', '.join(COUNT_WORDS.values())}. Several things share one style."
    )
