"""The training program, started by `accelerate launch training/train.py`."""

import os

# Set before torch is imported, to silence DDP's advice against find_unused_parameters, which keeps
# its buckets fixed (see distributed/accelerator.py).
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

# Imported before torch: it records the process that started this one.
from training.distributed import interrupt as interrupt
