"""Encoding of whole collections: stored activations, stored embeddings, several processes."""

from functools import partial

from maw import moved

__getattr__ = partial(moved, __name__)
