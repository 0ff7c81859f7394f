"""Images as users have them, found, checked and made of one size, for training and for measures.

`load.open_images` is the door; `config.DataConfig` says which images and how.
"""
