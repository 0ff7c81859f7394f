"""Networks of other programs, in the words of this package."""
