"""Tests of `maw/evaluation/`."""
