"""Settings of every test."""

import os
import tempfile

import hypothesis
import torch

# Decoded images are kept here, by this process and those it starts, not among the user's.
_cache = tempfile.TemporaryDirectory(prefix="ddpm_sa-tests-")
os.environ["XDG_CACHE_HOME"] = _cache.name

# The networks here are so small that a second thread costs more than it gives.
torch.set_num_threads(1)
# The same examples every time: what passes here passes there.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("house")
