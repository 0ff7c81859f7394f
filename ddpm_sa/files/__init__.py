"""Files: written whole or not at all, held by one writer, checked when read, and downloaded."""
