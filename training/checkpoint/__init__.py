"""The run folder and its checkpoints: written, checked, and resumed from."""
