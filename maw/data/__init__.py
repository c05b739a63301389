"""Datasets: from a name on the command line to a collection whose splits are drawn and checked."""

from functools import partial

from maw import moved

__getattr__ = partial(moved, __name__)
