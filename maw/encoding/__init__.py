"""Embeddings of whole collections: stored activations, kept embeddings, several processes."""

from functools import partial

from maw import moved

__getattr__ = partial(moved, __name__)
