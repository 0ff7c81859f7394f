"""An error for lack of memory, whoever raises it, becomes one line of advice."""

import numpy as np
import pytest
import torch

from ddpm_sa.errors import OutOfMemoryError, UserError, advise_out_of_memory

HUGE = 2**50  # bytes, more than any machine can map


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(HUGE, dtype=torch.uint8),
        lambda: np.empty(HUGE, np.uint8),
        lambda: bytearray(HUGE),
    ],
    ids=["torch", "numpy", "python"],
)
def test_a_real_lack_of_memory_gets_the_advice(allocate) -> None:
    with pytest.raises(OutOfMemoryError, match="out of memory; use less"):
        advise_out_of_memory("use less")(allocate)()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        MemoryError(),
    ],
    ids=str,
)
def test_every_words_for_it_are_known(error: Exception) -> None:
    with pytest.raises(UserError, match="out of memory; use less") as caught, advise("use less"):
        raise error
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)


def test_the_innermost_advice_is_given() -> None:
    def fail() -> None:
        raise MemoryError

    with pytest.raises(OutOfMemoryError, match="out of memory; inner") as caught:
        advise("outer")(advise("inner")(fail))()
    assert "outer" not in str(caught.value)


def test_other_errors_are_left_as_they_are() -> None:
    for error in (RuntimeError("our bug"), ValueError("can't allocate memory"), UserError("size")):
        with pytest.raises(type(error)) as caught, advise("use less"):
            raise error
        assert caught.value is error


advise = advise_out_of_memory
