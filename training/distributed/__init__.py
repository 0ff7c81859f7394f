"""Distributed training: processes, sharding, and signals that stop a run."""
