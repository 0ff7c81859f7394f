"""Convert the weights of other implementations of the network, one module per format.

Each function takes a mapping of names to arrays, however it was read; nothing is unpickled here.
"""

from ddpm_sa.checkpoints.ddpm_tf import from_ddpm_tf
from ddpm_sa.checkpoints.diffusers_names import from_diffusers
from ddpm_sa.checkpoints.edm import edm_scheduler, from_edm
from ddpm_sa.checkpoints.lucidrains import from_lucidrains, lucidrains_scheduler
from ddpm_sa.checkpoints.openai import from_openai
from ddpm_sa.checkpoints.pesser import from_pesser

__all__ = [
    "edm_scheduler",
    "from_ddpm_tf",
    "from_diffusers",
    "from_edm",
    "from_lucidrains",
    "from_openai",
    "from_pesser",
    "lucidrains_scheduler",
]
