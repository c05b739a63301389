"""Presets, and the sections of the help text."""

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
"""Named sets of defaults; `full` equals a run without a preset."""

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
"""First field of each section of the help text -> title of the section."""
