"""Reporting of a run: startup report, logs, samples, validation, and model card."""
