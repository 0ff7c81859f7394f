"""What images are read from: folders, tables and arrays, each opened as a `Source`."""
