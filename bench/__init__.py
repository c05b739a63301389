"""Measurements by hand: `make bench` runs them all; none is part of the tests."""
