"""Compare sets of images: Fréchet and kernel distances, precision and recall, neighbours."""
