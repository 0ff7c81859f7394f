"""A network as a .pt2 file of torch.export, checked with torch's own loader."""

import io
import json
import os
import warnings
from pathlib import Path

import torch

from ddpm_sa.export.check import check
from ddpm_sa.export.metadata import metadata
from ddpm_sa.export.program import DTYPES, Precision, capture
from ddpm_sa.files.atomic_files import write_atomically
from ddpm_sa.pipeline import Pipeline

METADATA = "metadata.json"


def export_pt2(
    pipeline: Pipeline,
    path: str | os.PathLike,
    *,
    dtype: Precision = "float32",
    dynamic_size: bool = False,
) -> float:
    """Write a pipeline's network as a file that `torch.export.load` reads without this package.

    `torch.export.load(path).module()` is called with sample, timestep and, for a class-conditional
    network, class_labels, and returns what the network predicts; shapes, types and arguments are
    those of `export_onnx`. The extra file metadata.json is a JSON object of the texts of
    `metadata`.

    Returns:
        The largest difference from the network, over the largest value of its output.

    Raises:
        ValueError: If the network takes another conditioning than class labels.
        OSError: If the file cannot be written.
    """
    with write_atomically(Path(path)) as partial:
        program = capture(pipeline, DTYPES[dtype], dynamic_size)
        texts = {METADATA: json.dumps(metadata(pipeline))}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own use of what it deprecates
            # torch ends the process where a disk is full.
            content = io.BytesIO()
            torch.export.save(program, content, extra_files=texts)
            partial.write_bytes(content.getvalue())
            with partial.open("rb") as file:  # a name must end in .pt2 for torch
                module = torch.export.load(file).module()
        return check(lambda inputs: module(*inputs.values()), pipeline, DTYPES[dtype], dynamic_size)
