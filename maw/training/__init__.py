"""Training of a retriever: batches, hard negatives, loss, optimizer, checkpoints."""
