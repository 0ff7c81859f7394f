"""Kinds of weights that sampling/convert.py takes: how each is opened."""
