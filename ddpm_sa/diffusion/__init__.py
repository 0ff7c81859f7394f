"""The theory: noise schedule, prediction types, training loss and likelihood."""
