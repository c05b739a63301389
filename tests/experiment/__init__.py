"""Tests of `maw/experiment/`."""
