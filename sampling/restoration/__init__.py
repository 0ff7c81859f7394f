"""The parts of sampling/restore.py: tasks, measurement files, and what is written."""
