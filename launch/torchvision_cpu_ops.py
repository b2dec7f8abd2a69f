"""Lets torchvision import beside a CPU-only torch, in every interpreter of the environment.

The package index has torchvision for CUDA only. Beside the CPU build of torch its native library does not
load, and `import torchvision` then dies with "operator torchvision::nms does not exist", although nothing
here calls an operator of it: transformers wants its Python transforms. Declaring the schemas of the two
operators that its import looks up is enough.

launch/install.sh copies this file into site-packages, next to a `.pth` file that imports it whenever Python
starts. It has to act there: vLLM inspects model classes in interpreters of its own. So until somebody
imports torchvision this costs one entry in `sys.meta_path`, and never an import of torch.

It does nothing where torch has CUDA (a broken library should be seen there) or where the library loads.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader

TYPE_CHECKING = False  # as typing's, whose import would cost every start of Python some milliseconds
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[object] = []
"""Holds the torch.library.Library: its operators vanish with it."""


def _own_library_loads(package_file: str) -> bool:
    """Whether torchvision's native library loads; torchvision itself then finds it loaded."""
    from pathlib import Path

    import torch

    try:
        for path in Path(package_file).parent.glob("_C*.so"):
            torch.ops.load_library(path)
            return True
    except OSError:
        pass
    return False


def declare_missing_operators(package_file: str) -> None:
    """Declare what torchvision's import looks up and a CPU-only torch lacks."""
    import torch

    if torch.version.cuda is not None or _declared or _own_library_loads(package_file):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    _declared.append(library)


class _Loader(SourceFileLoader):
    """Loads torchvision as usual, the operators declared first."""

    def exec_module(self, module: ModuleType) -> None:
        declare_missing_operators(self.path)
        super().exec_module(module)


class _Finder:
    """Hands torchvision, and nothing else, to the loader above."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        # Finding is not importing: libraries ask whether torchvision is there without using it.
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, _Finder)
