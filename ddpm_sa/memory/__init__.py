"""How much memory there is, and how much a computation takes."""
