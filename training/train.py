"""Train the bundled model; one seeded, resumable command.

    python -m training.train --run runs/bundled

The schedule counts tokens: the curriculum moves on when the present stage is learned (or after
``--stage-tokens``), the learning rate warms up, stays, and falls to zero over the last part of
``--tokens``. Started again with the same ``--run`` it continues from the last checkpoint; SIGTERM
and SIGINT end it with one.
"""

import argparse
import json
import logging
import multiprocessing as mp
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from training.curriculum import CHOICE_WEIGHT, PROSE_WEIGHT, STAGES, Stage
from training.documents import Prose
from training.export import bundled_decoder
from training.facts import FactMaker
from training.model import Decoder, ModelShape, load_checkpoint, save_checkpoint, tied
from training.optim import Muon, optimizers_for
from training.samples import SampleMaker
from training.tokenizer import TOKENIZER_FILES, spaced_words

log = logging.getLogger("training")

BRANCHED = 0.75  # share of the batches whose rows are documents with many questions
ROW_TOKENS = 3072  # of such a batch
SHORT_BATCHES = 0.5  # share of the last stage's batches that are drawn as in stages 1 and 2
LEARNED = 0.9  # share of answers whose choice is right, a running mean, at which a stage ends
LOSS_PLACES = 0.3  # share of the tokens at which the loss is taken: all answers, and some prose
WARMUP_STEPS = 60


@dataclass
class Progress:
    """What a resumed run goes on from."""

    step: int = 0
    tokens: int = 0
    stage: int = 0
    stage_tokens: int = 0
    accuracy: float = 0.0
    accuracy_steps: int = 0

    @property
    def choices(self) -> float:
        """Return the share of right choices: a running mean over some hundred steps."""
        return self.accuracy / (1 - 0.99**self.accuracy_steps) if self.accuracy_steps else 0.0


def make_batches(queue: mp.Queue, stage_number: mp.Value, data: Path, seed: int) -> None:
    """Fill the queue with batches of the present stage (runs in a process of its own)."""
    rng = random.Random(seed)
    words = json.loads((data / "words.json").read_text())
    maker = SampleMaker(
        Tokenizer.from_file(str(data / "tokenizer.json")),
        Prose.load(data),
        FactMaker(words, rng),
        rng,
    )
    while True:
        number = stage_number.value
        last = number == len(STAGES) - 1
        stage = STAGES[rng.choice((1, 1, 2)) if last and rng.random() < SHORT_BATCHES else number]
        queue.put((number, *make_batch(maker, stage, rng)))


def make_batch(maker: SampleMaker, stage: Stage, rng: random.Random) -> tuple[np.ndarray, ...]:
    """Return ids [rows, length], places, targets, weights [N] and spans [N, 2] of the loss,
    ends [M, 4]: row, place, and first place and size of a value, and branches [rows, length].

    N is the same for all batches of a stage: the answers and a random part of the prose.
    """
    if stage.branched and rng.random() < BRANCHED:
        drawn = [maker.lookups.branched(stage) for _ in range(ROW_TOKENS // stage.branched)]
        rows = [row for row, _ in drawn]
        branches = np.array([numbers for _, numbers in drawn])
    else:
        rows = [maker.row(stage) for _ in range(stage.rows)]
        branches = np.zeros((stage.rows, stage.length), np.int64)
    noise = np.random.default_rng(rng.getrandbits(32))
    ends = [(number, *pair) for number, row in enumerate(rows) for pair in row[-1]]
    made = zip(*(row[:-1] for row in rows), strict=True)
    ids, targets, weights, spans = (np.array(part) for part in made)
    order = weights.ravel() + noise.random(weights.size) * PROSE_WEIGHT
    order[weights.ravel() == 0] = -1
    places = np.sort(np.argsort(-order)[: int(weights.size * LOSS_PLACES)])
    chosen = (part.reshape(weights.size, -1)[places] for part in (targets, weights, spans))
    targets, weights, spans = chosen
    weights = weights[:, 0].astype(np.float32)
    ends = np.array(ends, np.int64).reshape(-1, 4)
    return ids, places, targets[:, 0], weights, spans, ends, branches


def learning_rate(step: int, tokens: int, total: int, peak: float, decay: float = 0.2) -> float:
    """Return the rate: warm up by steps, stay, then fall linearly to zero by tokens, over the last
    part ``decay`` of them."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    left = max(0.0, 1.0 - tokens / total)
    return peak * warm * min(1.0, left / decay)


def has_fast_bfloat16() -> bool:
    """Return whether this processor multiplies bfloat16 matrices faster than float32 ones."""
    times = {torch.float32: [0.0], torch.bfloat16: [0.0]}
    for dtype, taken in times.items():
        a, b = torch.ones(512, 256, dtype=dtype), torch.ones(256, 512, dtype=dtype)
        taken.clear()
        for _ in range(20):
            start = time.perf_counter()
            a @ b
            taken.append(time.perf_counter() - start)
    return min(times[torch.bfloat16]) < 0.8 * min(times[torch.float32])  # the first are slower


def parse() -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--data", type=Path, default=Path("runs/data"))
    parser.add_argument("--tokens", type=int, default=52_000_000)
    parser.add_argument("--stage-tokens", type=int, default=6_000_000)
    parser.add_argument("--first-stage", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--matrix-lr", type=float, default=2e-3, help="of Muon")
    parser.add_argument("--decay", type=float, default=0.2, help="last part, of a falling rate")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--intermediate", type=int, default=384)
    parser.add_argument("--rope-theta", type=float, default=10000.0)
    parser.add_argument("--guide", type=float, default=0.5, help="weight of the guide's loss")
    parser.add_argument(
        "--biases",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="of the attention's projections; they start heads on the tokens before",
    )
    parser.add_argument("--weights", type=Path, help="folder of an exported model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--save-seconds", type=float, default=180)
    return parser.parse_args()


def keep_tokenizer(data: Path, run: Path) -> None:
    """Copy the data's tokenizer to the run, for what looks at it; refuse another than it had."""
    kept = run / "tokenizer.json"
    if kept.exists() and kept.read_bytes() != (data / "tokenizer.json").read_bytes():
        raise SystemExit(f"{run} was begun with another tokenizer than that of {data}")
    for name in TOKENIZER_FILES:
        shutil.copy(data / name, run / name)


def weights_of(path: Path, data: Path, tokens: int) -> Decoder:
    """Return the model of an exported folder; one of another vocabulary than the data's, which has
    so many tokens, is refused."""
    model = bundled_decoder(path)
    if model.shape.vocabulary != tokens:
        raise SystemExit(f"{path} has {model.shape.vocabulary} tokens, {data} {tokens}")
    return model


def train(args: argparse.Namespace) -> None:
    """Train to the end of the token budget."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    keep_tokenizer(args.data, args.run)
    checkpoint = args.run / "checkpoint.pt"
    if checkpoint.exists():
        model, state = load_checkpoint(checkpoint)
        progress = Progress(**state["progress"])
    else:
        vocabulary = Tokenizer.from_file(str(args.data / "tokenizer.json")).get_vocab()
        spaced = spaced_words(vocabulary)
        shape = ModelShape(
            vocabulary=len(vocabulary),
            hidden=args.hidden,
            layers=args.layers,
            heads=args.heads,
            head_size=args.head_size,
            intermediate=args.intermediate,
            rope_theta=args.rope_theta,
            biases=args.biases,
            spaced=spaced,
        )
        given = (args.weights, args.data, len(vocabulary))
        model = tied(weights_of(*given) if args.weights else Decoder(shape), spaced)
        state, progress = {}, Progress(stage=args.first_stage)
    optimizers = optimizers_for(model, args.optimizer)
    for optimizer, kept in zip(optimizers, state.get("optimizers", ()), strict=False):
        optimizer.load_state_dict(kept)
    log.info("%d parameters, %s", sum(p.numel() for p in model.parameters()), progress)
    loss_of = torch.compile(model.weighted_loss) if args.compile else model.weighted_loss
    queue: mp.Queue = mp.Queue(maxsize=24)
    stage_number = mp.Value("i", progress.stage)
    worker = mp.Process(
        target=make_batches,
        args=(queue, stage_number, args.data, args.seed + progress.step),
        daemon=True,
    )
    worker.start()
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stop.append(received))
    try:
        loop(args, model, optimizers, progress, loss_of, queue, stage_number, stop)
    finally:
        worker.terminate()


def loop(args, model, optimizers, progress, loss_of, queue, stage_number, stop) -> None:  # noqa: ANN001  main's own objects
    """Take steps until the budget is spent; log and save on the way."""
    losses: list[float] = []
    guides: list[float] = []
    low = args.precision == "bfloat16" or (args.precision == "auto" and has_fast_bfloat16())
    log.info("matrix products in %s", "bfloat16" if low else "float32")
    since = saved = time.monotonic()
    tokens_before = progress.tokens
    while progress.tokens < args.tokens and not stop:
        number, *arrays = queue.get()
        if number != progress.stage:
            continue
        batch = tuple(map(torch.from_numpy, arrays))
        ids, weights = batch[0], batch[3]
        rate = learning_rate(progress.step, progress.tokens, args.tokens, args.lr, args.decay)
        for optimizer in optimizers:
            scale = args.matrix_lr / args.lr if isinstance(optimizer, Muon) else 1.0
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss, guide, right = loss_of(*batch)
        (loss + args.guide * guide).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        progress.step += 1
        progress.tokens += ids.numel()
        progress.stage_tokens += ids.numel()
        if (choices := weights == CHOICE_WEIGHT).any():
            share = float(right[choices].float().mean())
            progress.accuracy += 0.01 * (share - progress.accuracy)
            progress.accuracy_steps += 1
        losses.append(loss.item())
        guides.append(guide.item())
        if progress.step % 50 == 0:
            now = time.monotonic()
            log.info(
                "step %6d tokens %6.2f M stage %d loss %.4f guide %.3f choices %.3f lr %.2e "
                "%6.0f tokens/s",
                progress.step,
                progress.tokens / 1e6,
                progress.stage,
                sum(losses) / len(losses),
                sum(guides) / len(guides),
                progress.choices,
                rate,
                (progress.tokens - tokens_before) / (now - since),
            )
            losses, guides, since, tokens_before = [], [], now, progress.tokens
        learned = progress.accuracy > LEARNED or progress.stage_tokens > args.stage_tokens
        if learned and progress.stage + 1 < len(STAGES):
            progress.stage += 1
            progress.stage_tokens = 0
            progress.accuracy, progress.accuracy_steps = 0.0, 0
            stage_number.value = progress.stage
            log.info("stage %d begins", progress.stage)
        if time.monotonic() - saved > args.save_seconds or stop or progress.tokens >= args.tokens:
            save(args.run / "checkpoint.pt", model, optimizers, progress)
            saved = time.monotonic()


def save(
    path: Path, model: Decoder, optimizers: list[torch.optim.Optimizer], progress: Progress
) -> None:
    """Write a checkpoint that ``train`` continues from."""
    states = [optimizer.state_dict() for optimizer in optimizers]
    save_checkpoint(path, model, optimizers=states, progress=vars(progress))
    log.info("saved at step %d", progress.step)


if __name__ == "__main__":
    settings = parse()
    settings.run.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.FileHandler(settings.run / "log.txt"), logging.StreamHandler()],
    )
    train(settings)
