"""Tests of `maw/search/`."""
