"""Depth attention: the 5-D layer, depth kernels, routers, and their installation in a Hugging Face model."""
