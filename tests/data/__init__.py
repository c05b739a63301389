"""Tests of `maw/data/`."""
