"""Networks as files that run without this package: ONNX, and the .pt2 of torch.export."""

from ddpm_sa.export.onnx_file import export_onnx
from ddpm_sa.export.pt2_file import export_pt2

__all__ = ["export_onnx", "export_pt2"]
