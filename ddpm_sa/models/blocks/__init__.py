"""What a U-Net is made of: residual blocks, resampling and the levels that hold them."""
