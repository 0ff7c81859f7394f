"""How far a set of images is from another: distances of features, shares, colours, neighbours."""
