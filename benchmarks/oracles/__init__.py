"""Data for which the right answer is known in closed form, and the exact networks for them."""
