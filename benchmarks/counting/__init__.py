"""Counts what a network would do on a GPU, on tensors without data."""
