"""What the programs share: loading a model, sampler settings, devices, output folders."""
