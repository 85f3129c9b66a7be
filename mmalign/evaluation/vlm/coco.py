"""What is in the pictures of COCO 2014, as CHAIR has it: objects with masks, and objects that people wrote of."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

SPLITS = ("val", "train")
WANTED = (
    "Download annotations_trainval2014.zip (images.cocodataset.org/annotations), unpack it, and give the folder that "
    "holds instances_val2014.json and captions_val2014.json with --annotations (for pictures of train2014, those of "
    "train too)"
)


def read_ground_truth(
    folder: Path,
    images: Collection[int],
    class_of: Mapping[str, str],
    mentioned: Callable[[str], Collection[str]],
) -> dict[int, frozenset[str]]:
    """COCO image id -> classes in the picture: of its instances, and of every human caption (``chair.py:136-184``).

    ``class_of``: category name -> class, the map of synonyms; ``mentioned``: classes in a caption. The files of the
    training split are read only where the validation split lacks a picture: no picture is in both. ValueError that says
    what to download where files are missing, and which pictures are in neither split.
    """
    found: dict[int, set[str]] = {}
    for split in SPLITS:
        waiting = set(images) - found.keys()
        if not waiting:
            break
        instances, captions = (folder / f"{kind}_{split}2014.json" for kind in ("instances", "captions"))
        if split == "train" and not (instances.is_file() or captions.is_file()):
            break
        _add(instances, captions, waiting, found, class_of, mentioned)
    missing = sorted(set(images) - found.keys())
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} pictures are in none of the annotation files there, such as COCO image "
            f"{missing[0]}. {WANTED}"
        )
    return {image: frozenset(found[image]) for image in images}


def _add(
    instances: Path,
    captions: Path,
    waiting: set[int],
    found: dict[int, set[str]],
    class_of: Mapping[str, str],
    mentioned: Callable[[str], Collection[str]],
) -> None:
    data = _read(instances, ("images", "categories", "annotations"))
    here = {image["id"] for image in data["images"]} & waiting
    found |= {image: set() for image in here}
    names = {category["id"]: category["name"] for category in data["categories"]}
    unknown = sorted(name for name in names.values() if name not in class_of)
    if unknown:
        raise ValueError(f"{instances}: the category {unknown[0]!r} is not among the synonyms; are they COCO's?")
    for annotation in data["annotations"]:
        if annotation["image_id"] in here:
            found[annotation["image_id"]].add(class_of[names[annotation["category_id"]]])
    for annotation in _read(captions, ("annotations",))["annotations"]:
        if annotation["image_id"] in here:
            found[annotation["image_id"]].update(mentioned(annotation["caption"]))


def _read(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file. {WANTED}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); download it again") from error
    missing = [key for key in keys if not isinstance(data, dict) or key not in data]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}; it is no annotation file of COCO")
    return data
