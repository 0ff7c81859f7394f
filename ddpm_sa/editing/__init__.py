"""Editing images with a trained model: SDEdit, inpainting, variations, interpolation."""

from ddpm_sa.editing.editor import Editor

__all__ = ["Editor"]
