"""Tests of the measurements of bench/."""
