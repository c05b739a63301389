"""Presets: named sets of defaults, and the sections in which settings are shown."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "offline": {
        "model": "packaged:all-MiniLM-L6-v2",
        "datasets": ["pystdlib"],
        "train_samples": 2000,
        "val_samples": 500,
        "test_samples": 1000,
        "num_negatives": 0,
        "num_epochs": 3,
    },
    "quick": {"train_samples": 500, "val_samples": 500, "test_samples": 500, "num_epochs": 3},
    "medium": {"train_samples": 1000, "val_samples": 500, "test_samples": 1000, "num_epochs": 5},
    "full": {"train_samples": 2000, "val_samples": 500, "test_samples": 1000, "num_epochs": 10},
    "production": {"train_samples": 5000, "val_samples": 500, "test_samples": 2000, "num_epochs": 20},
}
"""Named sets of defaults; `full` is what a run without a preset does."""

SECTIONS = {
    "model": "model",
    "datasets": "data",
    "batch_size": "training",
    "seeds": "protocol",
    "eval_batch_size": "evaluation",
    "use_lora": "LoRA",
    "maw_layers": "MAW: layers and kernels",
    "router": "MAW: router",
    "precision": "precision and devices",
    "quiet": "console and trackers",
    "log_dir": "storage",
}
"""The field that opens each section of the help, and the section's title."""
