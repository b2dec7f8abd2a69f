"""The mend of torchvision acts in fresh interpreters, where it is needed, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

LAUNCH = Path(__file__).parents[2] / "launch"
needs_cpu_torch = pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA here")

# A torch and a torchvision small enough to say which of them was asked for what.
TORCH = """
class version:
    cuda = {cuda!r}
class ops:
    @staticmethod
    def load_library(path):
        if not {loads}:
            raise OSError("libcudart.so: cannot open shared object file")
class library:
    class Library:
        def __init__(self, namespace, kind):
            assert namespace == "torchvision"
        def define(self, schema):
            print("defined", schema.split("(")[0])
"""


def run(code: str, *path: Path, flags: tuple[str, ...] = ()) -> str:
    """What the code prints in a fresh interpreter with these folders first on its path."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *flags, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fake_packages(folder: Path, *, cuda: str | None, loads: bool) -> Path:
    (folder / "torch.py").write_text(TORCH.format(cuda=cuda, loads=loads))
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text("print('torchvision')\n")
    (folder / "torchvision" / "_C.so").touch()
    return folder


# Flag -S: without the mend that is installed here, only the one under test.
def import_beside_fakes(folder: Path) -> list[str]:
    return run("import torchvision_cpu_ops, torchvision", folder, LAUNCH, flags=("-S",)).split("\n")[:-1]


def test_the_operators_are_declared_before_torchvision_runs(tmp_path):
    fake_packages(tmp_path, cuda=None, loads=False)
    assert import_beside_fakes(tmp_path) == ["defined nms", "defined qnms", "torchvision"]


def test_nothing_is_declared_where_torch_has_cuda(tmp_path):
    fake_packages(tmp_path, cuda="13.0", loads=False)
    assert import_beside_fakes(tmp_path) == ["torchvision"]


def test_nothing_is_declared_where_torchvisions_own_library_loads(tmp_path):
    fake_packages(tmp_path, cuda=None, loads=True)
    assert import_beside_fakes(tmp_path) == ["torchvision"]


def test_asking_whether_torchvision_is_there_imports_nothing(tmp_path):
    fake_packages(tmp_path, cuda=None, loads=False)
    code = """
import sys, torchvision_cpu_ops
from importlib.util import find_spec
print(find_spec("torchvision").origin, "torch" in sys.modules)
print(find_spec("no_such_module"))
"""
    origin = tmp_path / "torchvision" / "__init__.py"
    assert run(code, tmp_path, LAUNCH, flags=("-S",)) == f"{origin} False\nNone\n"


def test_a_start_without_torchvision_imports_only_cheap_modules():
    """Counted, not timed: what the mend adds to `sys.modules` is itself and the import system's own."""
    code = """
import sys
before = set(sys.modules)
import torchvision_cpu_ops
print(*sorted(set(sys.modules) - before))
"""
    # Flag -S: site would have imported much of it already.
    added = set(run(code, LAUNCH, flags=("-S",)).split())
    assert "torchvision_cpu_ops" in added
    assert {name.partition(".")[0] for name in added} <= {
        "torchvision_cpu_ops",
        "__future__",
        "importlib",
        "_imp",
        "warnings",
    }


@needs_cpu_torch
def test_the_installed_mend_is_this_file():
    import torchvision_cpu_ops

    assert Path(torchvision_cpu_ops.__file__).read_text() == (LAUNCH / "torchvision_cpu_ops.py").read_text()


@pytest.mark.slow
@needs_cpu_torch
def test_a_fresh_interpreter_imports_torchvision_and_its_transforms_work():
    code = """
import sys
assert "torch" not in sys.modules
import torch, torchvision
from torchvision.transforms.v2 import functional
print(tuple(functional.resize(torch.zeros(3, 8, 8), [4, 6]).shape))
"""
    assert run(code) == "(3, 4, 6)\n"


@pytest.mark.slow
@needs_cpu_torch
def test_without_the_mend_torchvision_does_not_import_here():
    """When this fails, torchvision has a CPU build that loads, and the mend can go."""
    code = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__module__", "") != "torchvision_cpu_ops"]
try:
    import torchvision
except RuntimeError as error:
    print(error)
"""
    assert "torchvision::nms does not exist" in run(code)
