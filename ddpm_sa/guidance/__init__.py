"""Guidance: how several network evaluations become one output."""
