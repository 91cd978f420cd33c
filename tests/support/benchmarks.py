"""Import the programs of benchmarks/, which is no package."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from support.program import ROOT


def program(name: str) -> ModuleType:
    """Import benchmarks/NAME.py."""
    folder = str(ROOT / "benchmarks")  # where the programs find each other
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
