"""Depth attention: the 5-D layer, depth kernels, routers, and how they go into a Hugging Face model."""
