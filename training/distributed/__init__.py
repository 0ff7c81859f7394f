"""Several processes that train one network, and signals that end them."""
