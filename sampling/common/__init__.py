"""Shared by the programs: model loading, sampler settings, devices, output folders."""
