"""Figures, render with matplotlib or Pillow."""
