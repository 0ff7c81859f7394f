"""Restoration without training: images from measurements, by a model of images alone."""

from ddpm_sa.restoration.linear import LinearOperator, SpectralOperator, check_adjoint
from ddpm_sa.restoration.methods import DDNM, DPS, DiffPIR, PiGDM, RePaint
from ddpm_sa.restoration.operators import Bicubic, BlockMean, FourierMask, GaussianBlur, Grey, Mask
from ddpm_sa.restoration.restorer import Restorer

__all__ = [
    "DDNM",
    "DPS",
    "Bicubic",
    "BlockMean",
    "DiffPIR",
    "FourierMask",
    "GaussianBlur",
    "Grey",
    "LinearOperator",
    "Mask",
    "PiGDM",
    "RePaint",
    "Restorer",
    "SpectralOperator",
    "check_adjoint",
]
