"""The fault matrix: the faults that a run must survive, one file for each group.

    make test       # a small sample of each fault, within the ordinary suite
    make faults     # the full counts; docs/reliability.md has the results

A package, unlike the folder around it, so that its conftest.py is `faults.conftest` and hides no other.
"""
