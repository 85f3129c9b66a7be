"""Let torchvision be imported where its compiled operators do not fit torch: a CUDA wheel beside torch for CPU, say.

``make install`` runs this file where ``import torchvision`` fails; it then copies itself into the environment, with a
``.pth`` file that calls :func:`declare_first` whenever Python starts. Importing torchvision names two compiled
operators; their schemas are declared here, so that its transforms, which are plain torch, work. The operators
themselves (``nms``, decoding of JPEG) stay absent: calling one raises.
"""

import sys
from importlib.abc import MetaPathFinder

SCHEMAS = tuple(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms"))


class DeclareFirst(MetaPathFinder):
    """Declares the operators when torchvision is about to be imported; never finds a module itself."""

    library = None

    def find_spec(self, fullname, path=None, target=None):
        """Always None: the next finder does the work."""
        if fullname == "torchvision" and DeclareFirst.library is None:
            import torch  # asks for torchvision itself, so that this method may run inside itself

            if DeclareFirst.library is None:
                DeclareFirst.library = torch.library.Library("torchvision", "DEF")
                for schema in SCHEMAS:
                    DeclareFirst.library.define(schema)


def declare_first() -> None:
    """Put the finder before all others, once."""
    if not any(isinstance(finder, DeclareFirst) for finder in sys.meta_path):
        sys.meta_path.insert(0, DeclareFirst())


if __name__ == "__main__":
    import shutil
    import sysconfig
    from pathlib import Path

    target = Path(sysconfig.get_path("purelib"))
    shutil.copy(__file__, target)
    name = Path(__file__).stem
    (target / f"{name}.pth").write_text(f"import {name}; {name}.declare_first()\n", encoding="utf-8")
