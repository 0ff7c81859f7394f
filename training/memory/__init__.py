"""What a run needs of memory, and whether it fits."""
