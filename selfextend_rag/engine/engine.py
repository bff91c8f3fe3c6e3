"""One causal language model on token ids: prefill in chunks, and answers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.cache.identity import model_state
from selfextend_rag.cache.persist import Snapshot, snapshot
from selfextend_rag.cache.rewind import start_recording
from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.engine.decode import Answers, BatchPrompt, Generation, OneByOne, Together
from selfextend_rag.engine.prefix import CachedPrefix
from selfextend_rag.engine.run import Cancelled, Observer, Progress, Reserve, Run, is_cancelled
from selfextend_rag.engine.sampling import GenerationSettings, TokenConstraint
from selfextend_rag.errors import GenerationCancelled, UnsupportedModelError
from selfextend_rag.model import lock_of, refuse_chunks, switched
from selfextend_rag.positions import SelfExtend


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
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be a positive integer, got {chunk_size}")
        self.model = model
        self._check_mode()
        self.chunk_size = chunk_size
        self.kv_bits = kv_bits
        self.lock = lock_of(model)
        self.new_cache(0)  # refuses bits that it can't keep keys in
        # asks a model for the last token's logits alone, where it can be asked
        accepted = inspect.signature(model.forward).parameters
        self._last_logits = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        settings: SelfExtend | None = None,
        capacity: int = 0,
        chunk_size: int | None = None,
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        reserve: Reserve | None = None,
    ) -> CachedPrefix:
        """Read tokens and return them with their cache, to generate from as often as wanted.

        Args:
            tokens: token ids, the start token included if the model wants one.
            settings: of SelfExtend; None for plain attention.
            capacity: tokens to allocate space for at once: these and those to follow.
            chunk_size: tokens to run at once; those of the engine by default.
            progress: called after each chunk.
            cancelled: ends the work between two chunks.
            reserve: called before anything runs; what it raises ends the call.

        Raises:
            GenerationCancelled: cancelled before the last chunk was read.
            UnsupportedModelError: the model can't be extended, or can't continue from a cache.
        """
        tokens = _checked(tokens)
        run = Run(progress=progress, cancelled=is_cancelled(cancelled), reserve=reserve)
        if run.cancelled():
            raise GenerationCancelled(0, len(tokens))
        with self.lock.hold(run.cancelled) as held:
            if not held:
                raise GenerationCancelled(0, len(tokens))
            instead = "give document and question to generate, as one prompt"
            refuse_chunks(self.model, settings, instead, run.cancelled)
            cache = self.new_cache(max(capacity, len(tokens)))
            if run.reserve is not None:
                run.reserve(cache)
            with switched(self.model, settings, run.cancelled):
                self.feed(tokens, 0, cache, run, chunk_size)
                state = model_state(self.model)
        start_recording(cache)  # sliding layers keep what they need to be cut back
        return CachedPrefix(tokens, settings, cache, state)

    def snapshot(self, prefix: CachedPrefix) -> Snapshot:
        """Return what a prefix holds, to be saved; waits until no run is adding to it.

        Raises:
            CacheMismatchError: its layers are of a kind that can't be saved, or the model's weights
                have changed since.
        """
        with self.lock.hold(lambda: False):
            prefix.check_model(self.model)
            return snapshot(prefix.cache)

    def generate(
        self,
        tokens: Sequence[int],
        options: GenerationSettings | None = None,
        *,
        prefix: CachedPrefix | None = None,
        reuse: PrefixStore | None = None,
        settings: SelfExtend | None = None,
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
            CacheMismatchError: the prompt does not begin with the prefix or ends with it, or other
                settings of SelfExtend are asked for than those of the prefix; when the first token
                is asked for, also if the model's weights or adapters have changed since it was
                read.
            UnsupportedModelError: then, if the prompt is to be read in chunks and the model can't
                continue from a cache.
        """
        prompt = BatchPrompt(_checked(tokens), options or GenerationSettings(), constraint)
        run = Run(progress=progress, cancelled=is_cancelled(cancelled), observer=observer)
        if prefix is not None:
            run = run.shifted(len(prefix), len(tokens))
        return Generation(
            self.answers([prompt], prefix=prefix, reuse=reuse, settings=settings,
                         chunk_size=chunk_size, run=run)
        )  # fmt: skip

    def answers(
        self,
        prompts: Sequence[BatchPrompt],
        *,
        prefix: CachedPrefix | None = None,
        reuse: PrefixStore | None = None,
        settings: SelfExtend | None = None,
        at_once: int = 1,
        chunk_size: int | None = None,
        run: Run,
    ) -> Answers:
        """Return the running answers to several prompts; arguments as of ``generate``.

        Args:
            prompts: with a prefix, each begins with it and continues.
            at_once: the most answers to decode together; more than one needs a prefix, and a model
                for which `selfextend_rag.engine.rows.unsupported_reason` is empty.
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
                settings = prefix.settings_for(prompt.tokens, settings)
        if at_once == 1 or prefix is None:
            keys = OneByOne(self, run, settings, chunk_size, prefix, reuse)
            return Answers(self, prompts, keys, run, at_once=1)
        return Answers(self, prompts, Together(self, run, chunk_size, prefix), run, at_once=at_once)

    def end_tokens(self) -> tuple[int, ...]:
        """Return the tokens that the model's generation configuration names as its end."""
        named = getattr(self.model.generation_config, "eos_token_id", None)
        if named is None:
            return ()
        return tuple(named) if isinstance(named, list | tuple) else (int(named),)

    def new_cache(self, capacity: int) -> SelfExtendCache:
        """Return an empty cache with space for so many tokens."""
        return SelfExtendCache(self.model.config, capacity, self.kv_bits)

    def blank_cache(self) -> SelfExtendCache:
        """Return the cache of one token, which shows how this model keeps its keys."""
        cache = self.new_cache(1)
        self.forward([(0,)], cache)
        return cache

    def feed(
        self,
        tokens: tuple[int, ...],
        cached: int,
        cache: Cache,
        run: Run,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Run tokens in chunks after those cached, and return the last one's logits ``[1, V]``.

        For callers that hold the model's lock and have set it up.

        Raises:
            GenerationCancelled: cancelled before the last chunk was read.
            UnsupportedModelError: the model keeps no keys in the cache.
        """
        total, step = cached + len(tokens), chunk_size or self.chunk_size
        for start in range(0, len(tokens), step):
            if run.cancelled():
                raise GenerationCancelled(cached + start, total)
            chunk = tokens[start : start + step]
            logits = self.forward([chunk], cache)
            done = cached + start + len(chunk)
            if cache.get_seq_length() != done:
                raise UnsupportedModelError(
                    f"{type(self.model).__name__} does not keep its keys in the cache it is given "
                    f"({cache.get_seq_length()} of {done} tokens arrived)"
                )
            if run.progress is not None:
                run.progress(done, total)
        return logits

    @torch.inference_mode()
    def forward(
        self,
        rows: Sequence[Sequence[int]],
        cache: Cache,
        positions: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Run the next tokens of B rows and return the logits of their last ones, ``[B, V]``.

        For callers that hold the model's lock and have set it up.

        Args:
            rows: of one length.
            cache: what comes before them.
            positions: of the tokens; counted by the model when not given.

        Raises:
            ValueError: the model is in training mode by now.
        """
        self._check_mode()
        device = next(self.model.get_input_embeddings().parameters()).device
        # Offloaded weights are on no device; accelerate's hooks then move what they are given.
        device = torch.device("cpu") if device.type == "meta" else device
        options: dict[str, object] = dict(self._last_logits)
        if positions is not None:
            options["position_ids"] = torch.tensor(positions, device=device)
        output = self.model(
            input_ids=torch.tensor(rows, device=device),
            past_key_values=cache,
            use_cache=True,
            **options,
        )
        logits: Tensor = output.logits
        return logits[:, -1]

    def _check_mode(self) -> None:
        if self.model.training:  # its dropout would be heard in keys and answers
            raise ValueError("the model is in training mode; call model.eval() first")


def _checked(tokens: Sequence[int]) -> tuple[int, ...]:
    if not tokens:
        raise ValueError("there are no tokens to run; a prompt needs at least one")
    return tuple(tokens)
