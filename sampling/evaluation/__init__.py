"""The computations of sampling/evaluate.py and sampling/paper.py."""
