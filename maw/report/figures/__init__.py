"""Figures for papers, and pictures of routing."""
