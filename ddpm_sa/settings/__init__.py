"""What the settings of all programs have in common: ranges of numbers, words of a command line."""
