"""What the attention layers do: maps, measures, and what happens without them."""
