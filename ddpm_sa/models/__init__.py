"""The U-Net: its attention, its blocks, what can be built, and how weights are loaded."""
