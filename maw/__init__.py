"""Multi-attention-weight retrieval: depth attention with a learned router, against zero-shot and LoRA.

    import maw
    model = maw.add_maw(AutoModel.from_pretrained(...), layers=[12], depths=32)      # see `maw.models.add_maw`

Importing the package loads nothing heavy: each of these names is fetched when it is first used.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "MTEBEncoder": "maw.evaluation.mteb",
    "Method": "maw.config.method",
    "PastRun": "maw.experiment.past_run",
    "RetrievalData": "maw.data.collection",
    "compare_with_seeds": "maw.evaluation.routing.diagnostics",
    "encode": "maw.models.encode",
    "load_collection": "maw.data.registry",
    "read_events": "maw.runtime.run_log",
    "top_k": "maw.search.exact",
    "add_maw": "maw.models.add_maw",
    "attention_maps": "maw.evaluation.routing.attention_maps",
    "load_maw": "maw.models.save_maw",
    "picked_depths": "maw.evaluation.routing.attention_maps",
    "save_maw": "maw.models.save_maw",
    "trained_parameters": "maw.models.add_maw",
    "export_retriever": "maw.models.export.sentence_transformers",
    "push_to_hub": "maw.models.export.hub",
    "read_qrels": "maw.report.tables.trec",
    "read_run": "maw.report.tables.trec",
}
__all__ = list(_HOMES)

_MOVED = {
    "maw.data": ("load_collection", "RetrievalData"),
    "maw.diagnostics": ("compare_with_seeds",),
    "maw.encoding": ("encode",),
    "maw.logs": ("read_events",),
    "maw.mteb_encoder": ("MTEBEncoder",),
    "maw.past_run": ("PastRun",),
    "maw.search": ("top_k",),
}
"""Module paths that documentation used to show, and the public names that were imported from them."""


def __getattr__(name: str) -> Any:
    """Imports a public name's module when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def moved(module: str, name: str) -> Any:
    """A public name under a module path of earlier versions; warns that it is now imported from `maw`.

    Raises:
        AttributeError: the module never had that name.
    """
    if name not in _MOVED[module]:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warnings.warn(f"{module}.{name} has moved: from maw import {name}", DeprecationWarning, stacklevel=3)
    return __getattr__(name)


class _MovedModules(MetaPathFinder, Loader):
    """Finds the modules of `_MOVED` that are no more, as modules that have nothing but the moved names."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in _MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__getattr__"] = partial(moved, module.__name__)


sys.meta_path.append(_MovedModules())  # behind the ordinary finders, which find the rooms of the same name
