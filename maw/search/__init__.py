"""The best passages of each query: exact, by FAISS, and divided over several processes."""

from functools import partial

from maw import moved

__getattr__ = partial(moved, __name__)
