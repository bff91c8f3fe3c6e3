"""How documents, questions and conversations become token ids; the one place that says so.

A prompt over documents has two parts with a fixed border: the documents, read once, and what asks
the question. Each part is always tokenized by itself, so a question put to a reading runs on the
very tokens of a fresh run.

Plain form, for models without a chat template::

    {start token}{documents}

    Question: {question}
    Answer:

Chat form: one user message, ``{documents}``, the instruction and ``Question: {question}``, blank
lines between them, rendered by the model's own template.

Several documents are joined by blank lines, each with ``# {title}`` above it; see ``packing``. A
single document stands without its title. White space at the end of a document is left out.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from jinja2 import TemplateError

from selfextend_rag.documents import Document
from selfextend_rag.llm.codec import Encoded, TextCodec
from selfextend_rag.llm.conversation import (
    Message,
    for_template,
    guarded,
    normalised,
    plain_conversation,
    tools_text,
    with_system_in_user,
    with_system_text,
    without_calls,
)
from selfextend_rag.llm.packing import BREAK as _BREAK
from selfextend_rag.llm.packing import PackedDocuments, joined_documents
from selfextend_rag.llm.toolforms import OUR_FORM, measured_form, takes_system_text
from selfextend_rag.llm.tools import Tool
from selfextend_rag.structured import CallForm
from selfextend_rag.structured.thought import BEGIN

PromptForm = Literal["auto", "chat", "plain"]

INSTRUCTION = "Answer the question from the text above. If the text does not say, say that."


class PromptBuilder:
    """Builds every prompt for one tokenizer.

    Args:
        tokenizer: a tokenizer of transformers.
        form: ``"chat"`` uses its chat template, ``"plain"`` does not, ``"auto"`` does if there is
            one.
        instruction: stands between documents and question in the chat form; may be empty.
        template_options: variables for the chat template, such as ``enable_thinking``.

    Raises:
        ValueError: the chat form is asked for and the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        form: PromptForm = "auto",
        instruction: str = INSTRUCTION,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        if form not in ("auto", "chat", "plain"):
            raise ValueError(f'form must be "auto", "chat" or "plain", got {form!r}')
        if form == "chat" and not tokenizer.chat_template:
            raise ValueError(
                "the chat form needs a chat template, and the tokenizer has none; take the plain "
                'form (prompt_form="plain", or "auto"), or set tokenizer.chat_template'
            )
        self.codec = TextCodec(tokenizer)
        self.chat = bool(tokenizer.chat_template) if form == "auto" else form == "chat"
        self._instruction = instruction
        self._template_options = dict(template_options or {})
        self._border = _Border.measured(self.codec)
        self._controls = list(self.codec.control_ids)
        # Not to be guessed, so that no document can hold it.
        self._mark = f"[{secrets.token_hex(16)}"
        self._marks = re.compile(re.escape(self._mark) + r":(\d+)\]")

    @property
    def answer_stops(self) -> tuple[str, ...]:
        """Return what ends an answer to a question, beside the end token.

        A line end in the plain form, in which models go on with further questions of their own.
        """
        return () if self.chat else ("\n",)

    def identity(self) -> dict[str, Any]:
        """Return all that decides how documents and questions become tokens, as JSON values.

        Two builders of equal identity, on equal tokenizers, can go on with each other's documents.
        """
        samples = [Document.from_text("One.", title="A"), Document.from_text("Two.")]
        return {
            "chat": self.chat,
            "instruction": self._instruction if self.chat else "",
            "template": self.codec.tokenizer.chat_template if self.chat else "",
            "template_options": self._template_options if self.chat else {},
            "documents": joined_documents(samples).text,
            "question": self.question("Q?"),
        }

    def documents(self, documents: Sequence[Document]) -> list[int]:
        """Return the tokens of all that comes before a question and does not depend on it."""
        return list(self.packed(documents, ranges=False).tokens)

    def packed(self, documents: Sequence[Document], *, ranges: bool = True) -> PackedDocuments:
        """Return the tokens of ``documents`` with the part of a document that each one holds."""
        joined = joined_documents(documents)
        if not self.chat:
            start = self.codec.start()
            encoded = Encoded(start, [0] * len(start))
            encoded.append(self.codec.encoded(joined.text + self._border.left, ends=ranges), 0)
            return joined.packed(encoded, after="")
        before = self._rendered_halves(joined.text, "")[0]
        content = self._left(joined.text)
        after, trimmed = self._before_documents(self._unguarded(before), content)
        return joined.packed(self._encoded(before, ends=ranges), after, trimmed=trimmed)

    def _before_documents(self, written: str, content: str) -> tuple[str, int]:
        """Return what a template wrote before documents, and how many characters it left out.

        It may trim a message; the end is at the border, so white space at the beginning can go.

        Raises:
            ValueError: the documents are not there as they are.
        """
        ways = [content, content.lstrip()]
        if len(ways[0]) > len(ways[1]):  # the template may write the same white space itself
            head = self._render([{"role": "user", "content": self._mark}]).partition(self._mark)[0]
            ways.sort(key=lambda way: len(written) - len(way) != len(head))
        for way in ways:
            if written.endswith(way):
                return written[: len(written) - len(way)], len(content) - len(way)
        raise ValueError(
            'the chat template changes the text of documents; use prompt_form="plain" or another '
            "template, so that the model reads what they say"
        )

    def question(self, question: str) -> list[int]:
        """Return the tokens that follow those of ``documents``.

        Raises:
            ValueError: the question is blank.
        """
        if not question.strip():
            raise ValueError("the question is empty")
        if not self.chat:
            asked = f"{self._border.right}Question: {question}\nAnswer:"
            return self.codec.text(asked, after=self._border.after)
        asked = self._rendered_halves("", question)[1]
        return self._encoded(asked, after=self._border.after).ids

    @property
    def call_form(self) -> CallForm:
        """Return how the model writes calls of tools: as its template does, or as it is told."""
        return self._native_calls[0] if self._native_calls else OUR_FORM

    @cached_property
    def thinks(self) -> bool:
        """Return whether prompts end where the model is to think: after an opened ``<think>``."""
        if not self.chat:
            return False
        return self._render([{"role": "user", "content": "x"}]).rstrip().endswith(BEGIN)

    def prompt(self, prompt: str | Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Return the tokens of a text or a conversation.

        A text is one user message to a chat model; in the plain form it is continued as it stands.
        Where a chat template writes no system text, it begins the first user message. In the plain
        form a conversation is written as the system's text and then, for each user
        message and its reply, ``Question: ...`` and ``Answer: ...``; so is a text with tools.

        Args:
            prompt: the text, or messages.
            tools: what the model may call; written by its chat template if that takes tools, and
                described in a system text otherwise.

        Raises:
            ValueError: it is empty, a message is not of a kind that can be written, or the template
                does not write what it says.
        """
        given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        messages = normalised(given)
        if not any(message["content"] or "tool_calls" in message for message in messages):
            raise ValueError("the prompt is empty")
        if self.chat:
            return self._chat_prompt(messages, tools)
        if tools:
            messages = with_system_text(messages, tools_text(tools), own_message=True)
        as_it_stands = isinstance(prompt, str) and not tools
        text = messages[0]["content"] if as_it_stands else plain_conversation(messages)
        return [*self.codec.start(), *self.codec.text(text)]

    def _chat_prompt(self, messages: list[dict[str, Any]], tools: Sequence[Tool]) -> list[int]:
        more: dict[str, Any] = {}
        native = self._native_calls
        if tools and native:
            more["tools"] = [guarded(tool.definition, self._guard) for tool in tools]
        elif not native:
            if any("tool_calls" in m or m.get("role") == "tool" for m in messages):
                messages = without_calls(messages)
            if tools:
                own = self._takes_system_text
                messages = with_system_text(messages, tools_text(tools), own_message=own)
        if messages[0].get("role") == "system" and not self._takes_system_text:
            messages = with_system_in_user(messages)
        written = for_template(
            messages, arguments_as_text=bool(native and native[1]), guard=self._guard
        )
        rendered = self._render(written, **more)
        _refuse_losses(written, rendered)
        return self._encoded(rendered).ids

    @cached_property
    def _takes_system_text(self) -> bool:
        return takes_system_text(self._render)

    @cached_property
    def _native_calls(self) -> tuple[CallForm, bool] | None:
        """Return the template's own form of calls, and whether it wants arguments as text."""
        if not self.chat:
            return None
        end = self.codec.tokenizer.eos_token
        return measured_form(self._render, [end] if end else [])

    def _left(self, documents: str) -> str:
        """Return what a chat's user message holds before the border."""
        parts = [documents, *([self._instruction] if self._instruction else [])]
        return _BREAK.join(parts) + self._border.left

    def _rendered_halves(self, documents: str, question: str) -> tuple[str, str]:
        """Return what the template writes before and after the border in a chat on documents."""
        left = self._guard(self._left(documents))
        right = f"{self._border.right}Question: {self._guard(question)}"
        border = f"{self._mark}:border]"
        rendered = self._render([{"role": "user", "content": f"{left}{border}{right}"}])
        before, found, after = rendered.partition(border)
        if not found or border in after:
            raise ValueError("the chat template does not write a user message once and as it is")
        return before, after

    def _render(self, messages: Sequence[Message], **more: Any) -> str:
        options = {"add_generation_prompt": True, **self._template_options, **more}
        try:
            return self.codec.tokenizer.apply_chat_template(
                list(messages), tokenize=False, **options
            )
        except TemplateError as error:
            raise ValueError(
                f"the chat template does not take these messages: {error}; change their roles or "
                "order"
            ) from error

    def _guard(self, text: str) -> str:
        """Return the text with a mark in place of every control token's text."""
        return self.codec.control.sub(
            lambda found: f"{self._mark}:{self._controls.index(found[0])}]", text
        )

    def _unguarded(self, text: str) -> str:
        """Return the text with the control tokens' texts back in place of their marks."""
        return self._marks.sub(lambda found: self._controls[int(found[1])], text)

    def _encoded(self, rendered: str, *, after: str = "", ends: bool = False) -> Encoded:
        """Return the tokens of what the template wrote; marked texts are text again."""
        if not self._marks.search(rendered):
            return self.codec.encoded(rendered, after=after, as_text=False, ends=ends)
        encoded = Encoded()
        start = 0
        for piece, is_control in _pieces(rendered, self.codec.control):
            text = piece if is_control else self._unguarded(piece)
            if is_control:
                part = Encoded([self.codec.control_ids[piece]], [len(piece)])
            else:
                part = self.codec.encoded(text, after="" if encoded.ids else after, ends=ends)
            encoded.append(part, start)
            start += len(text)
        return encoded


@dataclass(frozen=True, slots=True)
class _Border:
    """Where the blank line before a question belongs, and how to tokenize what follows.

    Vocabularies differ in what they join across it: some a full stop and the line ends after it,
    some all line ends in a row. Which way gives the tokens of the undivided text is measured.
    """

    left: str
    right: str
    after: str

    @classmethod
    def measured(cls, codec: TextCodec) -> _Border:
        choices = [
            cls("", _BREAK, ""),
            cls(_BREAK, "", ""),
            cls("", _BREAK, "a"),
            cls(_BREAK, "", "\n"),
        ]
        head, tail = "That is the end.", "Question: Who?\nAnswer:"
        whole = codec.text(head + _BREAK + tail)
        for choice in choices:
            before = codec.text(head + choice.left)
            if before + codec.text(choice.right + tail, after=choice.after) == whole:
                return choice
        return choices[0]


def _refuse_losses(messages: Sequence[Message], rendered: str) -> None:
    """Refuse a prompt in which the template did not write what system or user said.

    Of an assistant's messages templates leave out thoughts, and of a tool's they change the form.
    """
    for message in messages:
        said = str(message.get("content") or "").strip()
        if message.get("role") in ("system", "developer", "user") and said not in rendered:
            raise ValueError(
                f"the chat template leaves out or changes what a message of role "
                f"{message['role']!r} says ({len(said)} characters); use another role, or "
                'prompt_form="plain"'
            )


def _pieces(text: str, control: re.Pattern[str]) -> list[tuple[str, bool]]:
    """Return the text between control tokens, and those, in order; empty ones left out."""
    pieces: list[tuple[str, bool]] = []
    start = 0
    for found in control.finditer(text):
        pieces += [(text[start : found.start()], False), (found[0], True)]
        start = found.end()
    return [(piece, is_control) for piece, is_control in [*pieces, (text[start:], False)] if piece]
