"""A checkpoint's weights in a small file that git can hold, to start another run from.

    python -m training.start --run runs/bundled --out training/start.safetensors

Matrices are rounded to 8 bits, with a scale for each row: half of bfloat16's size. What ships is
never made of this, but of a run that went on from it.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from training.model import Decoder, load_checkpoint, shape_of


def save_start(model: Decoder, path: Path) -> None:
    """Write the weights: int8 matrices and their rows' scales, all else in float32."""
    tensors = {}
    for name, weight in model.state_dict().items():
        if weight.dim() == 2:
            scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
            tensors[name] = (weight / scale).round().to(torch.int8)
            tensors[f"{name}/scale"] = scale
        else:
            tensors[name] = weight.contiguous()
    save_file(tensors, path, {"shape": json.dumps(asdict(model.shape))})


def load_start(path: Path) -> Decoder:
    """Return the model of such a file, in float32."""
    with safe_open(path, "pt") as stored:
        model = Decoder(shape_of(json.loads(stored.metadata()["shape"])))
        state = {}
        for name in model.state_dict():
            weight = stored.get_tensor(name).float()
            scaled = weight.dim() == 2
            state[name] = weight * stored.get_tensor(f"{name}/scale") if scaled else weight
    model.load_state_dict(state)
    return model


def main() -> None:
    """Write the start that a run's checkpoint gives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--out", type=Path, default=Path("training/start.safetensors"))
    args = parser.parse_args()
    save_start(load_checkpoint(args.run / "checkpoint.pt")[0], args.out)


if __name__ == "__main__":
    main()
