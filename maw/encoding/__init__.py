"""Embeddings of whole collections: stored activations, kept embeddings, several processes."""
