"""Tests of `maw/storage/`."""
