"""GRPO fine-tuning for video vision-language models. The README's "Read the code" says in which order."""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

# A file rewards.py in the folder that somebody works in would hide the package beside this one.
if "rewards" not in sys.modules:
    _spec = PathFinder.find_spec("rewards", [str(Path(__file__).parents[1])])
    assert _spec is not None and _spec.loader is not None
    sys.modules["rewards"] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["rewards"])
