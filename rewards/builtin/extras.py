"""Libraries that only some rewards need: imported when first used, and named with their remedy if missing."""

from __future__ import annotations

import importlib
from functools import lru_cache
from types import ModuleType


@lru_cache
def import_extra(module: str) -> ModuleType:
    """The module; ImportError says how to install what `egogrpo[rewards]` brings."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{error}; this needs: pip install egogrpo[rewards]") from error
