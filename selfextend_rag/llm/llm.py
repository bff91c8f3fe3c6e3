"""The front door: a model and its tokenizer that read whole documents and answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from selfextend_rag.bundled import FOLDER as BUNDLED
from selfextend_rag.cache.identity import model_state, token_fingerprint
from selfextend_rag.cache.store import PrefixStore, SpillFolder
from selfextend_rag.engine import Cancelled, Engine, Job, Progress, Run
from selfextend_rag.llm import saved
from selfextend_rag.llm.answers.answer import AnswerOptions
from selfextend_rag.llm.answers.runner import PreparedPrompt, Start, TextRunner
from selfextend_rag.llm.answers.stream import TextStream
from selfextend_rag.llm.base import BaseLLM, PromptOptions
from selfextend_rag.llm.budget import Documents, ReadingBudget, Space, as_documents
from selfextend_rag.llm.devices import MemoryLimit
from selfextend_rag.llm.ledger import Ledger, with_garbage_collected
from selfextend_rag.llm.loading.model import load_model
from selfextend_rag.llm.loading.sources import load_tokenizer, usable_processor
from selfextend_rag.llm.loading.unloaded import DeviceMap
from selfextend_rag.llm.options import knowing_options, refuse_unknown
from selfextend_rag.llm.reading import Reading
from selfextend_rag.llm.remote import RemoteLLM
from selfextend_rag.output.reader import output_format
from selfextend_rag.output.tools import tool_request
from selfextend_rag.planning import (
    ContextBudgetPlanner,
    MapPlanner,
    planner_defaults,
    pretraining_window_of,
)
from selfextend_rag.planning.plan import CHUNK_SIZES, Rule
from selfextend_rag.planning.planner import Extension
from selfextend_rag.positions import SelfExtend
from selfextend_rag.text.messages import Message
from selfextend_rag.text.picture_prompts import PicturePrompts
from selfextend_rag.text.pictures import tokenizer_of
from selfextend_rag.text.prompts import INSTRUCTION, PromptBuilder, PromptForm


class LongContextLLM(BaseLLM):
    """A causal language model whose context window is stretched to what a prompt needs.

    What fits the pretraining window runs plain and is the stock model's answer. What does not runs
    by SelfExtend, with settings chosen for its length. What can't fit is refused before the model
    does any work; nothing is ever truncated. The model is switched for each call and then put back.
    Calls may come from several threads, and one waits for the other; ``aread``, ``astream`` and
    ``agenerate`` leave an event loop free. A copy, deep or not, is the model itself; one made by
    `shared_llm` can be pickled, and is opened by its name again.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        tokenizer: its tokenizer.
        pretraining_window: P; by default what the model's configuration says.
        group_size: G for all that must be extended; by default the smallest sufficient one.
        neighbor_window: W; by default a quarter of P, rounded down to a multiple of G.
        max_group_size: the largest G to choose.
        trained_fraction: share of P that counts as well trained; by default what ``selfextend-rag
            calibrate`` has measured of this model, or two thirds. See `ContextBudgetPlanner`.
        extension: ``"auto"``, ``"always"`` or ``"never"``, see `ContextBudgetPlanner`.
        rule: ``"empirical"`` or ``"exact"``, see `ContextBudgetPlanner`.
        prompt_form: ``"chat"``, ``"plain"`` or ``"auto"``, see `PromptBuilder`.
        instruction: what the chat form says between documents and question.
        template_options: variables for the chat template, such as ``enable_thinking``.
        chunk_size: tokens of a prompt to run at once; by default as many as memory allows, and at
            most 2048.
        memory_limit: bytes that the model may take in all, as a number or such as ``"8GiB"``, or
            for each device; by default what is free. See docs/planning.md.
        kv_bits: 8 or 4 to keep keys and values in so many bits, in a half to a quarter of the
            memory of 16; None for the model's own precision. See docs/planning.md.
        prefix_cache_bytes: memory for the keys of earlier prompts of ``generate`` and ``stream``,
            so that one that starts alike runs only the rest; 0 keeps none. See docs/readings.md.
        prefix_cache_dir: a folder for those that do not fit into memory, found again by other
            processes.
        prefix_cache_dir_bytes: what the files in that folder may take together.
        processor: of a vision-language model, which then reads documents with pictures too; it
            may have the chat template. See docs/vision.md.
        method: experimental: ``"selfextend"``, or the name of another map of positions, which then
            takes its place with the settings its authors published; see docs/methods.md.

    Raises:
        CalibrationError: a calibration of this model is stored, and can't be read.
        ReadingFileError: ``prefix_cache_dir`` can't be made.
        UnknownMemoryError: a ``memory_limit`` is given, and what the model needs is not known.
        UnknownPretrainingWindow: the configuration does not say P, and it was not given.
        UnsupportedModelError: ``kv_bits`` is given, and no layer of the model keeps all tokens.
        ValueError: an option is out of range.
    """

    finds_evidence = True
    prompt_builder = PromptBuilder  # a subclass may write other prompts
    picture_prompt_builder = PicturePrompts  # and has a subclass of both for pictures then

    @knowing_options
    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pretraining_window: int | None = None,
        group_size: int | None = None,
        neighbor_window: int | None = None,
        max_group_size: int = 64,
        trained_fraction: Fraction | float | None = None,
        extension: Extension = "auto",
        rule: Rule = "empirical",
        prompt_form: PromptForm = "auto",
        instruction: str = INSTRUCTION,
        template_options: Mapping[str, object] | None = None,
        chunk_size: int | None = None,
        memory_limit: MemoryLimit | None = None,
        kv_bits: int | None = None,
        prefix_cache_bytes: int = 1 << 30,
        prefix_cache_dir: str | os.PathLike[str] | None = None,
        prefix_cache_dir_bytes: int = 16 << 30,
        processor: ProcessorMixin | None = None,
        method: str = SelfExtend.name,
    ) -> None:
        if processor is not None:
            if not issubclass(self.picture_prompt_builder, self.prompt_builder):
                raise ValueError(f"{type(self).__name__} reads text alone; leave processor out")
            tokenizer = tokenizer_of(processor, tokenizer)
        self.tokenizer = tokenizer
        if pretraining_window is None:
            pretraining_window = pretraining_window_of(model.config)
        planner: Callable[..., ContextBudgetPlanner] = ContextBudgetPlanner
        if method != SelfExtend.name:
            planner = partial(MapPlanner, method=method)
        self.planner = planner(
            pretraining_window,
            **planner_defaults(model.config, pretraining_window, trained_fraction),
            neighbor_window=neighbor_window,
            group_size=group_size,
            max_group_size=max_group_size,
            extension=extension,
            rule=rule,
        )
        builder: Callable[..., PromptBuilder] = self.prompt_builder
        if processor is not None:
            builder = partial(self.picture_prompt_builder, processor=processor)
        self.prompts = builder(
            tokenizer, form=prompt_form, instruction=instruction, template_options=template_options
        )
        at_once = CHUNK_SIZES[0] if chunk_size is None else chunk_size
        self.engine = Engine(model, chunk_size=at_once, kv_bits=kv_bits)
        self.prefix_cache = self._prefix_store(
            prefix_cache_bytes, prefix_cache_dir, prefix_cache_dir_bytes
        )
        ledger = Ledger(
            model, self.prefix_cache, limit=memory_limit, chunk_size=chunk_size, kv_bits=kv_bits
        )
        stated = getattr(model.generation_config, "max_new_tokens", None)
        self.budget = ReadingBudget(self.prompts, self.planner, stated, ledger.budget)
        self._ledger = ledger
        self.runner = TextRunner(self.engine, self.budget, ledger)

    def __reduce__(self) -> tuple[Any, ...]:
        from selfextend_rag.llm.library import shared_llm  # which imports this module

        if self.origin is None or self.origin.name is None:
            raise TypeError(
                f"{self.name} was handed over loaded, so it can't be pickled: its weights would "
                'be; name it instead, a folder, a hub id or "bundled", where it is made '
                "(shared_llm, or model= of a framework's class), and it is opened by that name"
            )
        return shared_llm, (self.origin.name, self.origin.loading, self.origin.context)

    def _prefix_store(
        self, max_bytes: int, folder: str | os.PathLike[str] | None, folder_bytes: int
    ) -> PrefixStore | None:
        """Return where prompts are kept for those to come, or None if nothing is to be kept."""
        model, tokenizer, kv_bits = self.model, self.tokenizer, self.engine.kv_bits
        if not isinstance(max_bytes, int):
            raise ValueError(f"prefix_cache_bytes must be a number of bytes, got {max_bytes!r}")
        if not isinstance(folder, str | os.PathLike | None):
            raise ValueError(f"prefix_cache_dir must be the path of a folder, got {folder!r}")
        if max_bytes == 0:
            if folder is not None:
                raise ValueError("prefix_cache_dir needs a prefix_cache_bytes above 0, got 0")
            return None
        spill = None
        if folder is not None:
            spill = SpillFolder(
                Path(folder), folder_bytes, lambda: token_fingerprint(model, tokenizer, kv_bits)
            )
        return PrefixStore(max_bytes, spill, state=lambda: model_state(model))

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device_map: DeviceMap = None,
        dtype: str | torch.dtype | None = "auto",
        full_attention: bool = False,
        weight_bits: int | None = None,
        model_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> LongContextLLM:
        """Return a model with its tokenizer, from a hub id, a folder or a GGUF file.

        Args:
            source: hub id, folder, or GGUF file.
            device_map: where the weights go, such as ``"auto"``; needs accelerate.
            dtype: precision of the weights; as they are stored by default.
            full_attention: switch the sliding windows of a model off whose every layer has one,
                such as Mistral 7B v0.1; the window then counts as P.
            weight_bits: 8 or 4 to round the weights to so many bits once they are loaded; a CPU
                then answers faster, and they take less memory. See docs/planning.md.
            model_options: more for transformers' ``from_pretrained``, such as ``revision``,
                ``attn_implementation`` or ``trust_remote_code``.
            options: of `LongContextLLM`.

        Raises:
            ModelLoadError: model, tokenizer or processor can't be found or read.
            UnsupportedModelError: ``full_attention`` of a model that was built around its windows,
                or ``weight_bits`` that can't be had.
        """
        refuse_unknown(cls, options)  # before anything is loaded
        more = dict(model_options or {})
        tokenizer = load_tokenizer(source, **more)
        takes = issubclass(cls.picture_prompt_builder, cls.prompt_builder)
        if "processor" not in options and takes:
            form = options.get("prompt_form", "auto")
            options["processor"] = usable_processor(source, tokenizer, form, **more)
        more |= {"device_map": device_map, "dtype": dtype}
        more |= {"full_attention": full_attention, "weight_bits": weight_bits}
        return cls(load_model(source, **more), tokenizer, **options)

    @classmethod
    def bundled(cls, **options: Any) -> LongContextLLM:
        """Return the small model that comes with this package; no download.

        It is a demonstrator that looks facts up in English text, and no assistant.
        """
        return cls.from_pretrained(BUNDLED, **options)

    @staticmethod
    def connect(url: str, model: str | None = None, **options: Any) -> RemoteLLM:
        """Return a model on a server of OpenAI's API, asked as one in this process is.

        Args:
            url: where the API begins, such as ``"http://127.0.0.1:8000/v1"``.
            model: its name on the server; by default the only one.
            options: of `RemoteLLM`, such as ``api_key``, ``tokenizer`` and ``at_once``.

        Raises:
            ServerError: there is no such server or model there; see `RemoteLLM`.
        """
        return RemoteLLM(url, model, **options)

    @property
    def model(self) -> PreTrainedModel:
        """Return the model."""
        return self.engine.model

    @property
    def name(self) -> str:
        """Return the hub id or folder that the model came from, or its class if it has none."""
        return getattr(self.model.config, "name_or_path", "") or type(self.model).__name__

    def read(
        self,
        documents: Documents,
        *,
        question: str | Sequence[str] = (),
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        **space: Unpack[Space],
    ) -> Reading:
        """Read documents once, to be asked as often as wanted.

        Args:
            documents: one or several, each a `Document` or a text.
            question: the question to come, or several; by default space is kept for any.
            progress: called with tokens done and tokens to do, after each chunk.
            cancelled: an event or function that ends the reading between two chunks.
            space: ``max_new_tokens``, ``question_reserve`` and ``turns``, as for ``plan``.

        Raises:
            ContextBudgetExceeded: they do not fit; the model has not run.
            MemoryBudgetExceeded: they would, but memory does not hold them; it has not run.
            UnsupportedModelError: they need SelfExtend, and the model can't be extended.
            GenerationCancelled: it was cancelled.
        """
        kept = as_documents(documents)
        packed, plan = with_garbage_collected(lambda: self.budget.planned(kept, question, space))
        self.budget.forget_tokens()  # from here on, the reading has them
        started = time.perf_counter()
        with self._ledger.reserving(plan, len(packed.tokens)) as reserve:
            prefix = Job(
                self.runner.worker,
                lambda is_cancelled: self.engine.prefill(
                    packed.tokens,
                    settings=plan.settings,
                    capacity=plan.total_tokens,
                    chunk_size=plan.chunk_size,
                    progress=progress,
                    cancelled=is_cancelled,
                    reserve=reserve,
                    pictures=self.prompts.pictures_in(packed, self.model),
                ),
                cancelled,
            ).result()
            self._ledger.hold(prefix.cache)
        seconds = time.perf_counter() - started
        read = saved.ReadDocuments(tuple(kept), plan, prefix, seconds, packed)
        return Reading(self.runner, read)

    async def aread(self, documents: Documents, **options: Any) -> Reading:
        """Do as ``read`` with the event loop free; ``cancelled`` may be given as an event alone.

        A task that is cancelled while it waits ends the reading between two chunks.
        """
        reading = await super().aread(documents, **options)
        assert isinstance(reading, Reading)  # which read returns
        return reading

    def load(self, path: str | os.PathLike[str], *, documents: Documents | None = None) -> Reading:
        """Return a reading that ``Reading.save`` wrote; the model reads nothing again.

        Args:
            path: the file.
            documents: what is expected to have been read; by default any.

        Raises:
            CacheMismatchError: it was read by other weights, another tokenizer, prompt form or
                pretraining window, or under other settings than this model would choose now, or it
                is of other documents; the message says which.
            CorruptReadingError: the file is damaged, or no reading.
            MemoryBudgetExceeded: memory does not hold it; nothing has been read.
            ReadingFileError: it can't be found or read.
        """
        expected = None if documents is None else as_documents(documents)
        read = saved.load(path, self.runner, expected)
        self._ledger.hold(read.prefix.cache)
        return Reading(self.runner, read)

    def check_options(self, **options: Unpack[AnswerOptions]) -> None:
        """Refuse options that ``Reading.ask`` would refuse, before documents are read for it.

        Raises:
            SchemaError: the schema holds what can't be enforced.
            TypeError: there is no such option.
            ValueError: an option is out of range.
        """
        ignored = ("json_schema", "progress", "cancelled")
        given: dict[str, Any] = {"max_new_tokens": self.budget.max_new_tokens, **options}
        given = {name: value for name, value in given.items() if name not in ignored}
        settings = self.runner.options(given, framed=True)
        output_format(self.prompts, settings, options.get("json_schema"), None)

    def stream(
        self, prompt: str | Sequence[Message], **options: Unpack[PromptOptions]
    ) -> TextStream:
        """Return the answer as a stream of text, while it is generated; see ``generate``."""
        schema, cancelled = options.pop("json_schema", None), options.pop("cancelled", None)
        progress = options.pop("progress", None)
        tools, choice = options.pop("tools", None), options.pop("tool_choice", "auto")
        parallel, request = options.pop("parallel_tool_calls", True), None
        if tools or choice != "auto":
            request = tool_request(tools, choice, parallel)
        framed = not isinstance(prompt, str) or request is not None
        given = {"max_new_tokens": self.budget.max_new_tokens, **options}
        settings = self.runner.options(given, framed=framed)
        form = output_format(self.prompts, settings, schema, request)
        made = self.prompts.prompt(prompt, () if request is None else request.tools)
        tokens = made.tokens
        plan = with_garbage_collected(
            lambda: self.budget.plan_prompt(
                len(tokens), settings.max_new_tokens, [x.picture for x in made.media]
            )
        )
        prepared = PreparedPrompt(tokens, settings, plan, framed, form)
        run = Run(progress=progress, pictures=self.prompts.pictures_in(made, self.model))
        return self.runner.stream(prepared, Start(reuse=self.prefix_cache), run, cancelled)
