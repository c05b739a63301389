"""Tests of `maw/training/`."""
