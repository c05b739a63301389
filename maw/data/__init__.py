"""Datasets: from a name on the command line to a collection whose splits are drawn and checked."""
