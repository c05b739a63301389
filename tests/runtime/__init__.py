"""Tests of `maw/runtime/`."""
