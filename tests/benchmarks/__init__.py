"""Tests of The measurements of bench/."""
