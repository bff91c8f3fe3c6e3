"""Prefill in chunks and decode, on one transformers model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.cache.identity import model_state
from selfextend_rag.cache.persist import Snapshot, snapshot
from selfextend_rag.cache.rewind import has_state
from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.engine.constraint import TokenConstraint
from selfextend_rag.engine.forward import Cancelled, Forwards, Progress, as_function
from selfextend_rag.engine.generation import FinishReason, Generation, Tally
from selfextend_rag.engine.pieces import pieces_objection, refuse_pieces
from selfextend_rag.engine.prefix import CachedPrefix
from selfextend_rag.engine.sampling import Sampler
from selfextend_rag.engine.settings import GenerationSettings
from selfextend_rag.errors import CacheMismatchError, GenerationCancelled
from selfextend_rag.model import switched, turn_of
from selfextend_rag.positions import SelfExtend

Watch = Callable[[PreTrainedModel], AbstractContextManager[object]]
"""Entered once the model is set up, left when the answer has ended and the cache still holds it."""


Claim = Callable[[SelfExtendCache], None]
"""Called when the model's turn has come and nothing has run; raises where memory has no room."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One call of ``generate``, checked."""

    tokens: tuple[int, ...]
    settings: GenerationSettings
    prefix: CachedPrefix | None
    reuse: PrefixStore | None
    extension: SelfExtend | None
    progress: Progress | None
    is_cancelled: Callable[[], bool]
    constraint: TokenConstraint | None
    watch: Watch | None
    chunk_size: int | None = None
    claim: Claim | None = None

    @property
    def longest(self) -> int:
        """Return how many tokens there may be in the end."""
        return len(self.tokens) + self.settings.max_new_tokens


class Engine(Forwards):
    """Runs one causal language model on token ids.

    Calls may come from several threads; they take turns, and so do all engines of one model.
    The model's attention is switched for the length of a call and then put back.

    Args:
        model: a causal language model of transformers, in evaluation mode, on any device.
        chunk_size: tokens of a prompt to run at once; bounds the memory of a prefill.
        kv_bits: 8 or 4 to keep keys and values in so many bits; None for the model's precision.

    Raises:
        UnsupportedModelError: ``kv_bits`` is given, and no layer of the model keeps all tokens.
        ValueError: an option is out of range, or the model is in training mode.
    """

    def __init__(
        self, model: PreTrainedModel, *, chunk_size: int = 2048, kv_bits: int | None = None
    ) -> None:
        super().__init__(model, chunk_size, kv_bits)
        self._turn = turn_of(model)

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        extension: SelfExtend | None = None,
        capacity: int = 0,
        chunk_size: int | None = None,
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        claim: Claim | None = None,
    ) -> CachedPrefix:
        """Read tokens and return them with their cache, to generate from as often as wanted.

        Args:
            tokens: token ids, the start token included if the model wants one.
            extension: settings of SelfExtend; None for plain attention.
            capacity: tokens to make room for at once: these and those to follow.
            chunk_size: tokens to run at once; those of the engine by default.
            progress: called after each chunk.
            cancelled: ends the work between two chunks.
            claim: called before anything runs; what it raises ends the call.

        Raises:
            GenerationCancelled: cancelled before the last chunk was read.
            UnsupportedModelError: the model can't be extended, or can't go on from a cache.
        """
        tokens = _checked(tokens)
        is_cancelled = as_function(cancelled)
        with self._turn.hold(is_cancelled) as held:
            if not held:
                raise GenerationCancelled(0, len(tokens))
            refuse_pieces(self, "give document and question to generate, as one prompt")
            cache = self._new_cache(max(capacity, len(tokens)))
            if claim is not None:
                claim(cache)
            with switched(self.model, extension):
                self.feed(tokens, 0, cache, progress, is_cancelled, chunk_size)
                state = model_state(self.model)
        cache.activate_past_recording()  # sliding layers keep what they need to be wound back
        return CachedPrefix(tokens, extension, cache, state)

    def snapshot(self, prefix: CachedPrefix) -> Snapshot:
        """Return what a prefix holds, to be saved; waits until nobody is adding to it.

        Raises:
            CacheMismatchError: its layers are of a kind that can't be saved, or the model's weights
                have changed since.
        """
        with self._turn.hold(lambda: False):
            prefix.check_model(self.model)
            return snapshot(prefix.cache)

    def generate(
        self,
        tokens: Sequence[int],
        settings: GenerationSettings | None = None,
        *,
        prefix: CachedPrefix | None = None,
        reuse: PrefixStore | None = None,
        extension: SelfExtend | None = None,
        chunk_size: int | None = None,
        constraint: TokenConstraint | None = None,
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        watch: Watch | None = None,
        claim: Claim | None = None,
    ) -> Generation:
        """Return the running answer to a prompt; nothing runs before its first token is asked for.

        A cancellation ends the answer with ``finish_reason`` ``"cancelled"``, also while the
        prompt is being read; it raises nothing.

        Args:
            tokens: the whole prompt, the part in ``prefix`` included.
            settings: length, sampling and stop tokens.
            prefix: what has been read before; it is left as it was found.
            reuse: where to look for the beginning of the prompt if there is no ``prefix``, and
                where to leave prompt and answer for the next one.
            extension: settings of SelfExtend; with a prefix, they are the prefix's.
            chunk_size: tokens of the prompt to run at once; those of the engine by default.
            constraint: what the answer is held to; a fresh one, used up by this answer. The answer
                ends with ``"stop"`` where it lets nothing follow.
            progress: called after each chunk of the prompt.
            cancelled: looked at between chunks and tokens.
            watch: a block to run the model in, of someone who observes it.
            claim: called before anything runs, with what is cached of the prompt; what it raises
                ends the call.

        Raises:
            CacheMismatchError: the prompt does not begin with the prefix or ends with it, or other
                settings of SelfExtend are asked for than those of the prefix; when the first token
                is asked for, also if the model's weights or adapters have changed since it was
                read.
            UnsupportedModelError: then, if the prompt is to be read in pieces and the model can't
                go on from a cache.
        """
        tokens = _checked(tokens)
        if prefix is not None:
            extension = extension_of(prefix, tokens, extension)
        job = _Job(
            tokens,
            settings or GenerationSettings(),
            prefix,
            reuse,
            extension,
            progress,
            as_function(cancelled),
            constraint,
            watch,
            chunk_size,
            claim,
        )
        # The tally is apart so that nothing refers in a circle: an abandoned generation is closed
        # at once, and the model free again.
        tally = Tally()
        tally.cached_tokens = 0 if prefix is None else len(prefix)
        return Generation(self._run(job, tally), tally, len(tokens))

    def _run(self, job: _Job, tally: Tally) -> Generator[int, None, None]:
        """Wait for the model, set it up, answer, and put everything back."""
        with self._turn.hold(job.is_cancelled) as held:
            if not held:
                tally.finish("cancelled")
                return
            tally.start()
            if job.prefix is not None:
                job.prefix.check_model(self.model)
            watching = nullcontext() if job.watch is None else job.watch(self.model)
            with switched(self.model, job.extension), self._cache(job, tally) as cache, watching:
                yield from self._answer(job, tally, cache)

    def _answer(self, job: _Job, tally: Tally, cache: Cache) -> Iterator[int]:
        """Read what is not cached and yield tokens until something ends the answer."""
        ends = job.settings.stop_token_ids
        ends = self.end_tokens() if ends is None else ends
        reason: FinishReason = "cancelled"  # as it is when the consumer leaves off
        try:
            cached = tally.cached_tokens
            logits = self.feed(
                job.tokens[cached:], cached, cache, job.progress, job.is_cancelled, job.chunk_size
            )
            if job.reuse is not None and not has_state(cache):
                cache.activate_past_recording()  # the next prompt may leave off in this answer
            sampler = Sampler(job.settings, job.tokens, logits.device, job.constraint)
            for left in reversed(range(job.settings.max_new_tokens)):
                token = sampler.pick(logits)
                tally.tick()
                if token in ends:
                    reason = "stop"
                    return
                tally.tokens.append(token)
                reason = "cancelled" if left else "length"
                whole = job.constraint is not None and job.constraint.finished
                reason = "stop" if whole else reason
                yield token
                if whole or not left or job.is_cancelled():
                    return
                logits = self._forward((token,), cache)
        except GenerationCancelled:
            pass  # the reason says it
        finally:
            tally.finish(reason)

    @contextmanager
    def _cache(self, job: _Job, tally: Tally) -> Iterator[Cache]:
        """Yield a cache of the first ``tally.cached_tokens`` of the prompt."""
        claim = job.claim or _claim_nothing
        if job.prefix is not None:
            claim(job.prefix.cache)
            job.prefix.cache.set_capacity(max(job.longest, job.prefix.cache.capacity))
            with job.prefix.lent() as cache:
                yield cache
            return
        new = self._new_cache(job.longest)
        step = job.chunk_size or self.chunk_size
        if 1 < step < len(job.tokens):
            refuse_pieces(self, f"set chunk_size to {len(job.tokens)} to read it at once")
        if job.reuse is None or pieces_objection(self):
            claim(new)
            yield new
            return
        found, tally.cached_tokens, state = job.reuse.take(
            job.tokens, job.extension, capacity=job.longest, blank=self._blank_cache
        )
        kept = new if found is None else found
        claim(kept)
        try:
            yield kept
        except GeneratorExit:  # left off between two tokens: what is there is right
            self._put_back(job, tally, kept, state)
            raise
        self._put_back(job, tally, kept, state)

    def _put_back(self, job: _Job, tally: Tally, cache: SelfExtendCache, state: Hashable) -> None:
        assert job.reuse is not None
        length = cache.get_seq_length()
        if length:
            job.reuse.put((*job.tokens, *tally.tokens)[:length], job.extension, cache, state)


def _claim_nothing(cache: SelfExtendCache) -> None:
    """Let anything run."""


def _checked(tokens: Sequence[int]) -> tuple[int, ...]:
    if not tokens:
        raise ValueError("there are no tokens to run; a prompt needs at least one")
    return tuple(tokens)


def extension_of(
    prefix: CachedPrefix, tokens: tuple[int, ...], extension: SelfExtend | None
) -> SelfExtend | None:
    """Return the settings of a prefix, once it is known to be one of these tokens."""
    if extension not in (None, prefix.extension):
        raise CacheMismatchError(
            f"the cached tokens were read under {prefix.extension}, not under {extension}; "
            "read them again"
        )
    if tokens[: len(prefix)] != prefix.tokens:
        raise CacheMismatchError(
            f"the prompt of {len(tokens)} tokens does not begin with the {len(prefix)} cached ones"
        )
    if len(tokens) == len(prefix):
        raise CacheMismatchError(
            f"all {len(tokens)} tokens of the prompt are cached; the last must be run, for its "
            "logits, so leave it out of the prefix"
        )
    return prefix.extension
