"""Tests of `maw/report/`."""
