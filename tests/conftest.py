"""What every test needs: no network, and GPU tests skipped where there is no GPU."""

from __future__ import annotations

import os

# Read by the libraries when they are first imported, so set before any test imports them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["SELFEXTEND_RAG_HOME"] = os.devnull  # no calibration of whoever runs the tests

import pytest
import torch

if not torch.cuda.is_available():
    # Triton kernels run on the CPU; decided for good when triton is first imported.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu`` on a machine without a CUDA device."""
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    if not torch.cuda.is_available():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
