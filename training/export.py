"""Write a checkpoint's weights as the bundled model, and check that nothing was lost.

python -m training.export --run runs/bundled --dtype bfloat16

Weights may be stored in 16 bits; what is stored still says that it computes in float32. With
``--average RUN`` it is the mean of these runs' weights (what that gave: ``training/README.md``).
"""

import argparse
import copy
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from transformers import GenerationConfig, LlamaForCausalLM

from training.model import Decoder, from_llama, load_checkpoint, to_llama
from training.tokenizer import TOKENIZER_FILES

log = logging.getLogger(__name__)

BUNDLED = Path("selfextend_rag/bundled")
MEBIBYTES = 16


def export(model: Decoder, folder: Path, dtype: torch.dtype) -> LlamaForCausalLM:
    """Write config, weights and generation settings next to the tokenizer; return the model."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    marks = {name: tokenizer.token_to_id(f"<{name}>") for name in ("bos", "eos", "pad")}
    llama = to_llama(model, **marks).to(dtype)
    llama.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=32,
        bos_token_id=marks["bos"],
        eos_token_id=marks["eos"],
        pad_token_id=marks["pad"],
    )
    llama.save_pretrained(folder)
    computes_in_float32(folder / "config.json")
    (folder / "model.safetensors").chmod(0o644)  # safetensors leaves it to its owner alone
    log.info("%s: %d bytes of weights", folder, sum(t.nbytes for t in stored(folder).values()))
    return llama


def computes_in_float32(config: Path) -> None:
    """Have a config name float32, whatever the weights are stored in: loading converts them."""
    settings = json.loads(config.read_text("utf-8")) | {"dtype": "float32"}
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")


@torch.no_grad()
def averaged(models: Sequence[Decoder]) -> Decoder:
    """Return the mean of the weights of models of one shape."""
    first = models[0]
    if any(model.shape != first.shape for model in models):
        raise SystemExit("weights of different shapes have no mean")
    states = [model.state_dict() for model in models]
    made = copy.deepcopy(first)
    made.load_state_dict({n: torch.stack([x[n] for x in states]).mean(0) for n in states[0]})
    return made


@torch.no_grad()
def rounded(model: Decoder, dtype: torch.dtype) -> Decoder:
    """Return a copy of the model in float32, its weights rounded to ``dtype``."""
    copied = copy.deepcopy(model)
    for weight in copied.parameters():
        weight.copy_(weight.to(dtype))
    return copied


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in the folder's safetensors file."""
    return load_file(folder / "model.safetensors")


def bundled_decoder(folder: Path = BUNDLED) -> Decoder:
    """Return a stored model as a training model, in float32."""
    return from_llama(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)).eval()


def opened(args: argparse.Namespace) -> tuple[Decoder, Path]:
    """Return the model that ``--bundled`` or ``--run`` names, and the folder of its tokenizer."""
    if args.bundled:
        return bundled_decoder(), BUNDLED
    model, state = load_checkpoint(args.run / "checkpoint.pt")
    log.info("%s", json.dumps(state["progress"]))
    return model.eval(), args.run


@torch.no_grad()
def largest_difference(model: Decoder, folder: Path) -> float:
    """Return how far the stored model's logits are from the training model's, in float32."""
    llama: nn.Module = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seeded = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.shape.vocabulary, (2, model.shape.window), generator=seeded)
    return float((llama(ids).logits - model(ids)).abs().max())


def main() -> None:
    """Export the checkpoint of a run."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--average", type=Path, nargs="+", default=[], help="further runs")
    parser.add_argument("--out", type=Path, default=BUNDLED)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    args = parser.parse_args()
    model, state = load_checkpoint(args.run / "checkpoint.pt")
    others = [load_checkpoint(run / "checkpoint.pt")[0] for run in args.average]
    model = averaged([model, *others]).eval()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy(args.run / name, args.out / name)
    dtype = getattr(torch, args.dtype)
    export(model, args.out, dtype)
    size = sum(path.stat().st_size for path in args.out.iterdir())
    if size > MEBIBYTES * 2**20:
        raise RuntimeError(f"{args.out} holds {size} bytes; at most {MEBIBYTES} MiB are wanted")
    difference = largest_difference(rounded(model, dtype), args.out)
    log.info("largest difference of a logit: %.2e", difference)
    log.info("by rounding to %s: %.2e", args.dtype, largest_difference(model, args.out))
    log.info("%s", json.dumps(state["progress"]))


if __name__ == "__main__":
    main()
