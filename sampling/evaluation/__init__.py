"""What sampling/evaluate.py and sampling/paper.py compute."""
