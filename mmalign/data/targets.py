"""Files that are about to be written."""

from pathlib import Path


def new_parquet(out: str | Path, name: str = "out=") -> Path:
    """The file ``out`` for parquet. ValueError for another suffix, a hidden name, or a file that is there.

    ``name``: what ``out`` is called where it was given, such as ``"--out "``.
    """
    target = Path(out).expanduser()
    if target.suffix != ".parquet" or target.name.startswith("."):
        raise ValueError(f"{name}{out}: give a file name that ends in .parquet")
    if target.exists():
        raise ValueError(f"{target} exists and is not overwritten; give another name")
    return target
