"""Tests of `maw/config/`."""
