"""Trainings that benchmarks compare, and how they take turns."""
