"""Weights on disk, in PyTorch's names and layouts, to and from our parameters."""
