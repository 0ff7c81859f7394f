"""Convert the weights of other implementations of the network, one module per format.

Each function takes a mapping of names to arrays, however it was read; nothing is unpickled here.
"""

from ddpm_sa.checkpoints.ddpm_tf import from_ddpm_tf
from ddpm_sa.checkpoints.diffusers_names import from_diffusers
from ddpm_sa.checkpoints.openai import from_openai
from ddpm_sa.checkpoints.pesser import from_pesser

__all__ = ["from_ddpm_tf", "from_diffusers", "from_openai", "from_pesser"]
