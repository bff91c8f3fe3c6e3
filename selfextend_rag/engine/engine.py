"""One causal language model on token ids: prefixes, which are read once, and answers."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfextend_rag.cache import Row, SelfExtendCache
from selfextend_rag.cache.cache import start_recording
from selfextend_rag.cache.identity import model_state
from selfextend_rag.cache.persist import Snapshot, snapshot
from selfextend_rag.cache.rows import rows_unsupported_reason
from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.engine.decode import Answers, BatchPrompt, Generation, OneByOne, Together, step
from selfextend_rag.engine.run import (
    CachedPrefix,
    Cancelled,
    Observer,
    Pictures,
    Progress,
    Reserve,
    Run,
    check_mode,
    feed,
    is_cancelled,
    last_nlls,
)
from selfextend_rag.engine.sampling import GenerationSettings, TokenConstraint
from selfextend_rag.errors import GenerationCancelled
from selfextend_rag.model import lock_of, refuse_chunks, switched
from selfextend_rag.model.extension import never
from selfextend_rag.model.verify import FAILURES, disagreement, failure, precision_of
from selfextend_rag.positions import PositionMap, SelfExtend

log = logging.getLogger(__name__)

_SHARED = 4  # of the few tokens that are tried; the rows continue them with 2 and 4
_SETTINGS = SelfExtend(group_size=2, neighbor_window=4)  # under which few tokens are extended

_reasons: WeakKeyDictionary[PreTrainedModel, dict[bool, str]] = WeakKeyDictionary()


class Engine:
    """Runs one causal language model on token ids.

    Calls may come from several threads; all engines of one model wait for each other. The model's
    attention is switched for the length of a call and then put back.

    Args:
        model: a causal language model of transformers, in evaluation mode, on any device.
        chunk_size: tokens of a prompt to run at once; bounds the memory of a prefill.
        kv_bits: how many bits to keep keys and values in; None for the model's precision.

    Raises:
        UnsupportedModelError: ``kv_bits`` is given, and no layer of the model keeps all tokens.
        ValueError: an option is out of range, or the model is in training mode.
    """

    def __init__(
        self, model: PreTrainedModel, *, chunk_size: int = 2048, kv_bits: int | None = None
    ) -> None:
        if not isinstance(chunk_size, int) or chunk_size < 1:
            raise ValueError(f"chunk_size must be a positive integer, got {chunk_size!r}")
        check_mode(model)
        SelfExtendCache(model.config, 0, kv_bits)  # refuses bits that it can't keep keys in
        self.model, self.chunk_size, self.kv_bits = model, chunk_size, kv_bits

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        settings: PositionMap | None = None,
        capacity: int = 0,
        chunk_size: int | None = None,
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        reserve: Reserve | None = None,
        pictures: Pictures | None = None,
    ) -> CachedPrefix:
        """Read tokens and return them with their cache, to generate from as often as wanted.

        Args:
            tokens: token ids, the start token included if the model wants one.
            settings: of SelfExtend; None for plain attention.
            capacity: tokens to allocate space for at once: these and those to follow.
            chunk_size: tokens to run at once; those of the engine by default.
            progress: called after each chunk.
            cancelled: looked at between chunks.
            reserve: called before anything runs; what it raises ends the call.
            pictures: those among the tokens, each of which is a negative number there.

        Raises:
            GenerationCancelled: cancelled before the last chunk was read.
            UnsupportedModelError: the model can't be extended, or can't continue from a cache, or
                would read the pictures otherwise than the stock model does.
        """
        model, tokens = self.model, _checked(tokens)
        run = Run(progress=progress, cancelled=is_cancelled(cancelled), pictures=pictures)
        with lock_of(model).hold(run.cancelled) as held:
            if not held or run.cancelled():
                raise GenerationCancelled(0, len(tokens))
            if pictures is not None:
                pictures.refuse_unproven(settings, run.cancelled)
            instead = "give document and question to generate, as one prompt"
            refuse_chunks(model, settings, instead, run.cancelled)
            cache = SelfExtendCache(model.config, max(capacity, len(tokens)), self.kv_bits)
            if reserve is not None:
                reserve(cache)
            with switched(model, settings, run.cancelled):
                feed(model, tokens, 0, cache, run, chunk_size or self.chunk_size)
                state = model_state(model)
        start_recording(cache)  # sliding layers keep what they need to be cut back
        return CachedPrefix(tokens, settings, cache, state)

    def snapshot(self, prefix: CachedPrefix) -> Snapshot:
        """Return what a prefix holds, to be saved; waits until no run is adding to it.

        Raises:
            CacheMismatchError: its layers are of a kind that can't be saved, or the model's weights
                have changed since.
        """
        with lock_of(self.model).hold(never):
            prefix.check_model(self.model)
            return snapshot(prefix.cache)

    def generate(
        self,
        tokens: Sequence[int],
        options: GenerationSettings | None = None,
        *,
        prefix: CachedPrefix | None = None,
        reuse: PrefixStore | None = None,
        settings: PositionMap | None = None,
        chunk_size: int | None = None,
        constraint: TokenConstraint | None = None,
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        observer: Observer | None = None,
    ) -> Generation:
        """Return the running answer to a prompt; nothing runs before its first token is asked for.

        A cancellation ends the answer with ``finish_reason`` ``"cancelled"``, also while the
        prompt is being read; it raises nothing.

        Args:
            tokens: the whole prompt, the part in ``prefix`` included.
            options: length, sampling and stop tokens.
            prefix: what has been read before; it is left as it was found.
            reuse: where to look for the beginning of the prompt if there is no ``prefix``, and
                where to leave prompt and answer for the next one.
            settings: of SelfExtend; with a prefix, they are the prefix's.
            chunk_size: tokens of the prompt to run at once; those of the engine by default.
            constraint: what the answer is constrained by; a fresh one, used up by this answer. The
                answer ends with ``"stop"`` where it lets nothing follow.
            progress: called after each chunk of the prompt.
            cancelled: looked at between chunks and tokens.
            observer: watches the model's attention.

        Raises:
            CacheMismatchError: the prompt does not continue the prefix, or other settings are asked
                for than its own; at the first token, if the model has changed since it was read.
            UnsupportedModelError: at the first token, if the prompt is to be read in chunks and the
                model can't continue from a cache.
        """
        prompt = BatchPrompt(_checked(tokens), options or GenerationSettings(), constraint)
        run = Run(progress=progress, cancelled=is_cancelled(cancelled), observer=observer)
        if prefix is not None:
            run = run.shifted(len(prefix), len(tokens))
        answers = self.answers(
            [prompt], prefix=prefix, reuse=reuse, settings=settings, chunk_size=chunk_size, run=run
        )
        return Generation(answers)

    def answers(
        self,
        prompts: Sequence[BatchPrompt],
        *,
        prefix: CachedPrefix | None = None,
        reuse: PrefixStore | None = None,
        settings: PositionMap | None = None,
        at_once: int = 1,
        chunk_size: int | None = None,
        run: Run,
    ) -> Answers:
        """Return the running answers to several prompts; arguments as of ``generate``.

        Args:
            prompts: with a prefix, each begins with it and continues.
            at_once: the most answers to decode together; more than one needs a prefix, and no
                `rows_unsupported_reason`.
            run: what the caller wants to hear of it; progress counts the tokens of all prompts
                behind the prefix.

        Raises:
            CacheMismatchError: a prompt does not begin with the prefix, or ends with it.
            ValueError: ``at_once`` is not positive.
        """
        if at_once < 1:
            raise ValueError(f"at_once must be a positive integer, got {at_once}")
        if prefix is not None:
            for prompt in prompts:
                prefix.check_prompt(prompt.tokens, settings)
            settings = prefix.settings
        chunk_size = chunk_size or self.chunk_size
        keys: OneByOne | Together
        if at_once > 1 and prefix is not None:
            keys = Together(self.model, run, settings, chunk_size, prefix)
        else:
            at_once, reuse = 1, reuse if prefix is None else None
            keys = OneByOne(self.model, run, settings, chunk_size, prefix, self.kv_bits, reuse)
        return Answers(prompts, keys, at_once=at_once)

    def continuation_nll(
        self, prefix: CachedPrefix, tokens: Sequence[int], count: int, cancelled: Cancelled = None
    ) -> list[float]:
        """Return the negative log-likelihoods, in nats, of the last tokens of a prompt.

        Args:
            prefix: what the prompt begins with and has been read; it is left as it was found.
            tokens: the whole prompt, the text whose likelihood is asked for at its end.
            count: tokens of that text.
            cancelled: looked at before anything runs.

        Raises:
            CacheMismatchError: the prompt does not continue the prefix, or the model has changed.
            GenerationCancelled: cancelled before it ran.
            ValueError: no token of the prompt is between the prefix and the text.
        """
        model, run, prompt = self.model, Run(cancelled=is_cancelled(cancelled)), _checked(tokens)
        prefix.check_prompt(prompt, None)
        rest = prompt[len(prefix) :]
        if not 0 < count < len(rest):
            raise ValueError(f"of {len(rest)} new tokens, from 1 to all but one, got {count}")
        with lock_of(model).hold(run.cancelled) as held:
            if not held or run.cancelled():
                raise GenerationCancelled(0, len(rest))
            prefix.check_model(model)
            with switched(model, prefix.settings, run.cancelled), prefix.borrowed() as cache:
                return last_nlls(model, rest, count, cache)

    def rows_unsupported_reason(self, prefix: CachedPrefix, cancelled: Cancelled = None) -> str:
        """Return why the model can't make several answers at a time; empty if it can.

        What can be seen is looked at first: layers with a recurrent state and chunked attention
        can't. Then two short rows run together and each alone, and the logits have to agree. That
        is done once for a model, plain and extended.

        Raises:
            GenerationCancelled: cancelled before it was known.
        """
        model, run = self.model, Run(cancelled=is_cancelled(cancelled))
        if seen := rows_unsupported_reason(prefix.cache) or _configured(model):
            return seen
        with lock_of(model).hold(run.cancelled) as held:
            if not held:
                raise GenerationCancelled(0, 0)
            found = _reasons.setdefault(model, {})
            extended = prefix.settings is not None
            if extended not in found:
                settings = _SETTINGS if extended else None
                found[extended] = _measured(model, prefix.tokens, settings, run)
                if found[extended]:
                    name = type(model).__name__
                    log.info("%s answers one question at a time: %s", name, found[extended])
            return found[extended]


def _checked(tokens: Sequence[int]) -> tuple[int, ...]:
    if not tokens:
        raise ValueError("there are no tokens to run; a prompt needs at least one")
    return tuple(tokens)


def _configured(model: PreTrainedModel) -> str:
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "the model takes no position_ids"
    config = model.config.get_text_config(decoder=True)
    others = {*(getattr(config, "layer_types", None) or ())}
    others -= {"full_attention", "sliding_attention"}
    if getattr(config, "attention_chunk_size", None) is not None:
        others.add("chunked_attention")
    return f"the model has layers of {', '.join(sorted(others))}" if others else ""


def _measured(
    model: PreTrainedModel, tokens: tuple[int, ...], settings: PositionMap | None, run: Run
) -> str:
    text = tuple(token for token in tokens if token >= 0) or (0,)  # no pictures
    few = (text[:10] * 10)[:10]
    try:
        with switched(model, settings):
            alone, together = _both_ways(model, few, settings, run)
    except FAILURES as error:
        return failure(error)
    return disagreement(alone, together, precision_of(model))


def _both_ways(
    model: PreTrainedModel, tokens: tuple[int, ...], settings: PositionMap | None, run: Run
) -> tuple[Tensor, Tensor]:
    """Return the logits ``[2, V]`` after two rows that share their first tokens."""
    shared, tails = tokens[:_SHARED], (tokens[_SHARED : _SHARED + 2], tokens[_SHARED + 2 :])
    cache = SelfExtendCache(model.config, capacity=len(tokens))
    feed(model, shared, 0, cache, run, _SHARED)
    start_recording(cache)
    prefix = CachedPrefix(shared, settings, cache)
    rows, alone = [], []
    for tail in tails:
        with prefix.borrowed() as cache:
            feed(model, tail[:-1], _SHARED, cache, run, len(tail))
            rows.append(Row(cache, _SHARED, len(tail)))
            alone.append(feed(model, tail[-1:], _SHARED + len(tail) - 1, cache, run, 1))
    together = step(model, rows, [tail[-1] for tail in tails], prefix)
    return torch.cat(alone).double().cpu(), together.double().cpu()
