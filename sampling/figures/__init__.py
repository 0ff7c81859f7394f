"""Figures, drawn with matplotlib or Pillow."""
