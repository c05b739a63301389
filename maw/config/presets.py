"""Presets, and the topics of the help text."""

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

TOPICS = {
    "model": ("model", "the encoder: pooling, similarity, prefixes, lengths"),
    "datasets": ("data", "datasets, methods, numbers of queries and passages"),
    "batch_size": ("training", "batches, negatives, epochs, learning rates, seed"),
    "seeds": ("protocol", "seeds, tuning, cross-validation"),
    "eval_batch_size": ("evaluation", "search, embeddings, tests of significance"),
    "use_lora": ("lora", "LoRA adapters"),
    "maw_layers": ("maw", "layers, depths and kernels of MAW"),
    "router": ("router", "the router that picks depths, and how it learns"),
    "precision": ("devices", "number format, GPUs, dry run, profile"),
    "quiet": ("console", "what is printed, experiment trackers"),
    "log_dir": ("storage", "folders, caches, checkpoints, resuming"),
}
"""First field of each topic of the help text -> its name, as in --help router, and what its flags set."""

FIRST_FLAGS = {
    "preset": "offline",
    "datasets": "beir:path/to/folder",
    "model": "path/to/folder",
    "methods": "zero_shot,lora,maw",
    "train_samples": "5000",
    "num_epochs": "5",
    "maw_layers": "5,6",
    "tune": "9",
    "seeds": "3",
    "log_dir": "logs/first",
    "resume": "last",
    "dry_run": "",
}
"""Flags that --help shows -> an example of a value; "" for a flag without one."""
