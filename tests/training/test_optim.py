"""Muon moves a matrix along the nearest orthogonal one, each stacked matrix by itself."""

import torch

from training.model import Decoder, ModelShape
from training.optim import Muon, optimizers_for, orthogonalized

SHAPE = ModelShape(vocabulary=31, hidden=16, layers=2, heads=2, head_size=12, intermediate=24)


def test_singular_values_come_near_one_and_directions_stay():
    torch.manual_seed(0)
    for size in ((3, 12, 12), (3, 12, 30), (3, 30, 12)):
        matrices = torch.randn(size)
        found = orthogonalized(matrices)
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.3
        assert values.max() < 1.4
        u, _, v = torch.linalg.svd(matrices, full_matrices=False)
        along = torch.diagonal(u.mT @ found @ v.mT, dim1=-2, dim2=-1)
        torch.testing.assert_close(
            along.sort().values, values.sort().values, atol=3e-2, rtol=0
        )  # bfloat16


def test_stacked_matrices_are_updated_one_by_one():
    torch.manual_seed(0)
    start, grad = torch.randn(24, 8), torch.randn(24, 8)
    whole = torch.nn.Parameter(start.clone())
    parts = [torch.nn.Parameter(part.clone()) for part in start.chunk(3)]
    whole.grad = grad.clone()
    for part, its_grad in zip(parts, grad.chunk(3), strict=True):
        part.grad = its_grad.clone()
    Muon([{"params": [whole], "parts": 3}], lr=0.1, momentum=0.9, weight_decay=0.1).step()
    Muon([{"params": parts, "parts": 1}], lr=0.1, momentum=0.9, weight_decay=0.1).step()
    torch.testing.assert_close(whole, torch.cat(parts))
    assert not torch.equal(whole, start)


def test_every_weight_has_one_optimizer_whichever_is_chosen():
    model = Decoder(SHAPE)
    for name in ("adamw", "muon"):
        held = [
            parameter
            for optimizer in optimizers_for(model, name)
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        assert {id(p) for p in held} == {id(p) for p in model.parameters()}
        assert len(held) == len(list(model.parameters()))


def test_both_optimizers_learn_a_sequence_by_heart():
    ids = torch.arange(31)[None]
    places, targets, weights = torch.arange(30), torch.arange(1, 31), torch.ones(30)
    nowhere, none = torch.zeros(30, 2, dtype=torch.long), torch.zeros(0, 4, dtype=torch.long)
    for name in ("adamw", "muon"):
        torch.manual_seed(0)
        model = Decoder(SHAPE)
        optimizers = optimizers_for(model, name)
        first = None
        for _ in range(60):
            loss, *_ = model.weighted_loss(
                ids, places, targets, weights, nowhere, none, torch.zeros_like(ids)
            )
            first = loss.item() if first is None else first
            loss.backward()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = 5e-3
                optimizer.step()
                optimizer.zero_grad()
        assert loss.item() < first / 2
