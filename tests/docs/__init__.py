"""Tests of README, docs, docstrings and examples."""
