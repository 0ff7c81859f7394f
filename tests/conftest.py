"""Settings of every test."""

import hypothesis
import torch

# The networks here are so small that a second thread costs more than it gives.
torch.set_num_threads(1)
# The same examples every time: what passes here passes there.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("house")
