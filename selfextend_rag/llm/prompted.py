"""The calls of `LongContextLLM` that answer a prompt, whatever it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.engine import Cancelled, Progress, Run
from selfextend_rag.llm.answer import PreparedPrompt, Start, TextRunner
from selfextend_rag.llm.budget import ReadingBudget
from selfextend_rag.llm.stream import Answer, TextStream
from selfextend_rag.output.reader import output_format
from selfextend_rag.text.messages import Message
from selfextend_rag.text.prompts import PromptBuilder
from selfextend_rag.text.tools import ToolChoice, Tools, tool_request


class PromptCalls:
    """``generate`` and ``stream``, and ``count_tokens`` of what they take."""

    budget: ReadingBudget
    prompts: PromptBuilder
    prefix_cache: PrefixStore | None
    _runner: TextRunner

    def count_tokens(self, prompt: str | Sequence[Message], *, tools: Tools | None = None) -> int:
        """Return the tokens of a text alone, or of the prompt that messages, and tools, make."""
        if isinstance(prompt, str):
            return len(self.prompts.codec.text(prompt))
        request = tool_request(tools)
        return len(self.prompts.prompt(prompt, () if request is None else request.tools))

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        json_schema: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        **options: Any,
    ) -> Answer:
        """Return the answer to a text or a conversation.

        Args:
            prompt: a text, or messages with ``role`` and ``content``, an assistant's ``tool_calls``
                and messages of role ``tool`` among them, in OpenAI's form.
            tools: what the model may call, in OpenAI's form; calls are in ``answer.tool_calls``.
            tool_choice: ``"auto"``, ``"none"``, ``"required"`` (or ``"any"``), or a tool's name.
            parallel_tool_calls: an answer may have several calls.
            json_schema: the answer is JSON that is valid for this schema.
            progress: called after each chunk of the prompt, from another thread.
            cancelled: ends the answer where it is.
            options: fields of `GenerationSettings`. In the plain form, of models without a chat
                template, a conversation's ``stop`` is a line end by default.

        Raises:
            ContextBudgetExceeded: prompt and answer do not fit; the model has not run.
            SchemaError: a schema holds what can't be enforced; the model has not run.
            ToolError: tools, choice or messages about tools can't be used as they are.
            ConstraintError: the answer could not be kept to its grammar.
        """
        with self.stream(
            prompt,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            json_schema=json_schema,
            progress=progress,
            cancelled=cancelled,
            **options,
        ) as stream:
            return stream.answer

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        json_schema: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        **options: Any,
    ) -> TextStream:
        """Return the answer as pieces of text that come as it is generated; see ``generate``."""
        request = tool_request(tools, tool_choice, parallel_tool_calls)
        framed = not isinstance(prompt, str) or request is not None
        options_given = {"max_new_tokens": self.budget.max_new_tokens, **options}
        settings = self._runner.options(options_given, framed=framed)
        form = output_format(self.prompts, settings, json_schema, request)
        tokens = self.prompts.prompt(prompt, () if request is None else request.tools)
        plan = self.budget.plan_prompt(len(tokens), settings.max_new_tokens)
        return self._runner.stream(
            PreparedPrompt(tuple(tokens), settings, plan, framed, form),
            Start(reuse=self.prefix_cache),
            Run(progress=progress),
            cancelled,
        )
