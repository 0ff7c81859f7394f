"""The run folder and its checkpoints: saving, validation and resuming."""
