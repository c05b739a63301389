"""Tests of `maw/attention/`."""
