"""Datasets: from a name on the command line to a collection with sampled and checked splits."""

from functools import partial

from maw import moved

__getattr__ = partial(moved, __name__)
