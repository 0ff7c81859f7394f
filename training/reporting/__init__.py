"""What a run says: at its start, as it goes, and in its model folder."""
