"""Trained retrievers for other programs: sentence-transformers folders and the model hub."""
