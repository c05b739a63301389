"""Multi-attention-weight retrieval: depth attention with a learned router, against zero-shot and LoRA."""

__version__ = "0.1.0"
