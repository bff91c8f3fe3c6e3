"""The rotary frequencies that a model has now: neither its weights nor its configuration say."""

from __future__ import annotations

from torch import nn


def rotary_state(model: nn.Module) -> tuple[tuple[tuple[float, ...], float], ...]:
    """Return the (inverse frequencies, scale) that the rotary modules of ``model`` were made with.

    Some modules write other ones while a prompt is long; of those it is what they go back to.
    """
    found = []
    for module in model.modules():
        kind = str(getattr(module, "rope_type", ""))
        rewrites = "dynamic" in kind or "longrope" in kind
        for name, buffer in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq") or buffer.is_meta:
                continue
            if rewrites and "original" not in name:
                continue
            scale = 1.0 if rewrites else getattr(module, "attention_scaling", 1.0)
            scale = getattr(module, name.replace("inv_freq", "attention_scaling"), scale)
            found.append((tuple(buffer.double().flatten().tolist()), float(scale)))
    return tuple(found)
