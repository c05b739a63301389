"""Multi-attention-weight retrieval: depth attention with a learned router, against zero-shot and LoRA.

    import maw
    model = maw.add_maw(AutoModel.from_pretrained(...), layers=[12], depths=32)      # see `maw.models.add_maw`

Importing the package loads nothing heavy: each of these names is fetched when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "add_maw": "maw.models.add_maw",
    "attention_maps": "maw.evaluation.routing.attention_maps",
    "load_maw": "maw.models.save_maw",
    "picked_depths": "maw.evaluation.routing.attention_maps",
    "save_maw": "maw.models.save_maw",
    "trained_parameters": "maw.models.add_maw",
    "export_retriever": "maw.models.export.sentence_transformers",
    "push_to_hub": "maw.models.export.hub",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Imports a public name's module when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
