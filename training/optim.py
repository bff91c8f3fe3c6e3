"""Muon for the matrices inside the layers, AdamW for everything else.

Muon (Jordan et al., 2024) replaces a matrix's momentum by the nearest orthogonal matrix, so that
rare directions, such as the few that tell one key from another, move as far as common ones.
"""

import torch
from torch import Tensor

from training.model import Decoder

COEFFICIENTS = (
    3.4445,
    -4.7750,
    2.0315,
)  # a quintic that moves singular values to 1


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return matrices [.., M, N] with all their singular values moved to about 1."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum.

    Args:
        params: groups of matrices of one shape, each with ``parts``: how many matrices are
            stacked in each of them (query, key and value are one weight, but three matrices).
        lr: learning rate; an update has a root mean square of about 0.2 times it, as with AdamW.
    """

    def __init__(self, params: list[dict], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Update all matrices of a group in one batch."""
        for group in self.param_groups:
            moved = []
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                average = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                moved.append(weight.grad.lerp(average, group["momentum"]))
            stacked = torch.stack(moved)
            parts = stacked.unflatten(1, (group["parts"], -1))
            updates = orthogonalized(parts)
            updates = updates * (0.2 * max(updates.shape[-2:]) ** 0.5)
            for weight, update in zip(group["params"], updates.flatten(1, 2), strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(update, alpha=group["lr"])


def optimizers_for(model: Decoder, name: str) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a model: "adamw", or "muon" with AdamW next to it."""
    layers = list(model.layers)
    matrices = [p for layer in layers for p in layer.parameters() if p.dim() == 2]
    if name == "adamw":
        matrices = [*matrices, model.embedding.weight]
    decayed = matrices if name == "adamw" else [model.embedding.weight]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [
        {"params": decayed, "weight_decay": 0.05 if name == "adamw" else 0.0},
        {"params": others, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
    if name == "adamw":
        return [adamw]
    stacks = [
        {"params": [layer.qkv.weight for layer in layers], "parts": 3},
        {"params": [layer.out.weight for layer in layers], "parts": 1},
        {"params": [layer.gate_up.weight for layer in layers], "parts": 2},
        {"params": [layer.down.weight for layer in layers], "parts": 1},
    ]
    return [Muon(stacks, lr=0.0, momentum=0.95, weight_decay=0.05), adamw]
