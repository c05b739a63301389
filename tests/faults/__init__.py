"""The fault matrix: what a run must survive, one file for each group of faults.

    make test       # a small sample of each fault, within the ordinary suite
    make faults     # the full counts; what it found is in docs/reliability.md

A package, unlike the folder around it, so that its conftest.py is `faults.conftest` and hides no other.
"""
