"""``python app.py`` inside of this folder, and the entry of a Hugging Face Space.

The folder may have any name there: it is imported as the package ``app`` whatever it is called. In a Space visitors
come through a proxy, and the store is the persistent disk where there is one.
"""

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def as_package() -> None:
    """Make this folder the package ``app``, and find ``mmalign`` beside or above it."""
    # The folder itself comes first on the path, and this file would be taken for the package.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    sys.path.insert(0, str(HERE if (HERE / "mmalign").is_dir() else HERE.parent))
    spec = importlib.util.spec_from_file_location("app", HERE / "__init__.py", submodule_search_locations=[str(HERE)])
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["app"] = package
    spec.loader.exec_module(package)


def space_options(space: bool, disk: Path) -> list[str]:
    """What a Space adds to the options: open to everybody, which is what a Space is for."""
    if not space:
        return []
    store = ["--store", str(disk / "arena")] if disk.is_dir() else []
    return ["--host", "0.0.0.0", "--public", "--behind-proxy", *store]


if __name__ == "__main__":
    as_package()
    from app.serve import main

    main([*space_options("SPACE_ID" in os.environ, Path("/data")), *sys.argv[1:]])
