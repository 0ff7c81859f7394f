"""The program that `accelerate launch training/train.py` starts."""

import os

# Before torch is loaded: DDP's advice to turn off what holds its buckets still (see launch.py).
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

# Before torch is loaded, too: it notes who started this process.
from training.distributed import interrupt as interrupt
