"""The program that exports networks."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples.onnx_sampling import sample
from sampling import export
from tests.export.test_export import tiny
from tests.support.runs import ROOT, environment


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    tiny().save_pretrained(folder)
    return folder


def test_onnx_file_is_written_described_and_sampled_from(model, run_main, tmp_path):
    words = ["--model", model, "--format", "onnx", "--dtype", "float16", "--dynamic_size", "true"]
    code, said, error = run_main(export.main, *words, "--output_dir", tmp_path / "out")
    assert code == 0, error
    path = tmp_path / "out" / "model.onnx"
    assert said.startswith(
        f"{path}: sample (batch, 3, height, width) float16, timestep (batch), class_labels (batch) "
        "-> out_sample; differs from the network by "
    )
    assert said.count("\n") == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert sample(str(path), num_images=2, steps=3, seed=0).shape == (2, 16, 16, 3)


def test_pt2_file_is_written_and_replaced(model, run_main, tmp_path):
    out = tmp_path / "out"
    for dtype in ("float16", "float32"):
        words = ["--model", model, "--format", "pt2", "--dtype", dtype, "--output_dir", out]
        code, said, error = run_main(export.main, *words)
        assert code == 0, error
        assert f"sample (batch, 3, 16, 16) {dtype}, timestep (batch), class_labels" in said
        network = torch.export.load(out / "model.pt2").module()
        x = torch.zeros(5, 3, 16, 16, dtype=getattr(torch, dtype))
        made = network(x, torch.zeros(5), torch.zeros(5, dtype=torch.long))
        assert made.dtype == x.dtype
    assert [file.name for file in out.iterdir()] == ["model.pt2"]


def test_without_onnxruntime_one_line_names_the_extra(model, run_main, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    out = tmp_path / "out"
    words = ["--model", model, "--format", "onnx", "--output_dir", out]
    code, _, error = run_main(export.main, *words)
    assert (code, error.count("\n")) == (2, 1)
    assert "ONNX files need the package onnxruntime: pip install 'ddpm_sa[export]'" in error
    assert not out.exists()


@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=pytest.mark.slow), "pt2"])
def test_a_file_that_cannot_be_written_is_a_line(kind, model, tmp_path):
    """A limit on the size of files is to a program what a full disk is."""
    out = tmp_path / "out"
    words = ["--model", model, "--format", kind, "--output_dir", out]
    ended = subprocess.run(
        [sys.executable, "sampling/export.py", *map(str, words)],
        cwd=ROOT,
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr == f"error: {out / f'model.{kind}'} cannot be written: File too large\n"
    assert not out.exists()
