"""The best passages of each query: exact, by FAISS, and divided over several processes."""
