"""Models of three kinds, and runs without gradients, for who asks."""

from __future__ import annotations

import pytest
import torch

from tests.model.models import gemma, llama, neox


@pytest.fixture(scope="module", params=[llama, neox, gemma], ids=lambda f: f.__name__)
def model(request):
    return request.param()


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield
