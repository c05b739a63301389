"""Tests of `maw/encoding/`."""
