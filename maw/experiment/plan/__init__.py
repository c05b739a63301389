"""Plan of a run: what it will download, store and compute."""
