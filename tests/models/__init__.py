"""Tests of `maw/models/`."""
