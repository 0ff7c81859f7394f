"""The sampling loop, the schedulers it can run, and reuse of features between steps."""
