"""Tests of `maw/cli/`."""
