"""Find, check, decode and resize the images of a data set, for training and evaluation.

The entry point is `load.open_images`; `config.DataConfig` holds its settings.
"""
