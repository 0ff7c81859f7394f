"""A network as an ONNX file, checked with onnxruntime."""

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ddpm_sa.errors import UserError, require
from ddpm_sa.export.check import check
from ddpm_sa.export.metadata import metadata
from ddpm_sa.export.program import DTYPES, Inputs, Precision, capture
from ddpm_sa.files.atomic_files import write_atomically
from ddpm_sa.pipeline import Pipeline

PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # the extra `export`
OPSET = 18
"""The version of ONNX's operators, which onnxruntime knows from 1.14 (2023) on."""
MOST_BYTES = 2**31 - 2**20  # of one message of Protocol Buffers, less the graph


def export_onnx(
    pipeline: Pipeline,
    path: str | os.PathLike,
    *,
    dtype: Precision = "float32",
    dynamic_size: bool = False,
) -> float:
    """Write a pipeline's network as one ONNX file, weights included.

    Inputs: sample, (batch, C, H, W), in dtype; timestep, (batch,), float32 (int64 for learned
    embeddings); for a class-conditional network class_labels, (batch,), int64. Output: out_sample,
    what the network predicts, in dtype. `metadata` says what the file holds besides.

    The file appears under its name once onnxruntime has read it and computed with it, at other
    batch sizes than it was made with, what the network computes.

    Args:
        pipeline: The model.
        path: The file; one that is there is replaced.
        dtype: Of the weights, the sample and the output.
        dynamic_size: Whether the height and width of sample are free too, in multiples of
            `UNet.size_multiple`.

    Returns:
        The largest difference from the network, over the largest value of its output.

    Raises:
        ValueError: If onnx, onnxscript or onnxruntime is not installed, the weights do not fit
            into one file, or the network takes another conditioning than class labels.
        OSError: If the file cannot be written.
    """
    require_packages()
    size = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    size *= DTYPES[dtype].itemsize
    require(
        size < MOST_BYTES,
        f"weights of {size:,} bytes are too large for an ONNX file, which holds 2 GiB; use "
        f"{'dtype float16 or ' if dtype == 'float32' else ''}format pt2",
    )
    with write_atomically(Path(path)) as partial:
        program = capture(pipeline, DTYPES[dtype], dynamic_size)
        partial.write_bytes(_model(program, metadata(pipeline)).SerializeToString())
        del program
        return check(_Session(partial), pipeline, DTYPES[dtype], dynamic_size)


def require_packages() -> None:
    """
    Raises:
        UserError: If one of `PACKAGES` is not installed.
    """
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise UserError(
                f"ONNX files need the package {error.name}: pip install 'ddpm_sa[export]', or, in "
                "a checkout, pip install '.[export]'"
            ) from error


class _Session:
    """A file as onnxruntime computes it on the CPU."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Inputs) -> Tensor:
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        (output,) = self.session.run(["out_sample"], arrays)
        return torch.from_numpy(output)


def _model(program: ExportedProgram, properties: dict[str, str]) -> Any:
    """The ONNX ModelProto of a captured network."""
    import onnx

    names = [spec.arg.name for spec in program.graph_signature.input_specs]
    names = [name for name in names if name in ("sample", "timestep", "class_labels")]
    with _quiet_exporter():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=["out_sample"],
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    _name_axes(model.graph)
    onnx.helper.set_model_props(model, properties)
    return model


def _name_axes(graph: Any) -> None:
    """Name the free axes of inputs and output; torch.export calls them s53 or 4*s39."""
    del graph.value_info[:]  # shapes in between, in those names; readers infer them
    for value in (*graph.input, *graph.output):
        axes = value.type.tensor_type.shape.dim
        for axis, name in zip(axes, ("batch", None, "height", "width"), strict=False):
            if axis.dim_param:
                axis.dim_param = name


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without torch's remarks on what is not installed, and on how it uses its own functions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
