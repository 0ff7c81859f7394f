"""Editing images with an unconditional model: inpainting, variations, interpolation."""

from ddpm_sa.editing.editor import Editor

__all__ = ["Editor"]
