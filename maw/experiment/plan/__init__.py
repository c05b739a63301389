"""What a run will download, store and compute, said before it starts."""
