"""Images that a network is conditioned on: what they are, and how training makes them."""
