"""Conversations written by the tokenizer's chat template, or by a plain one of our own.

A chat template must write what it is given and nothing else. Text that reads like one of its
control tokens is replaced by a mark before rendering and put back afterwards, so no document can
open a message or end one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NoReturn

from jinja2 import Environment, TemplateError

from selfextend_rag.text.codec import Encoded, TextCodec
from selfextend_rag.text.messages import Message, Turn

THOUGHT_BEGIN, THOUGHT_END = "<think>", "</think>"

_PLAIN = """\
{%- set state = namespace(waiting=false) -%}
{%- for turn in turns -%}
{%- if not loop.first and turn.role != 'assistant' -%}{{ '\\n\\n' }}{%- endif -%}
{%- if turn.role == 'system' -%}
{{ turn.content }}
{%- if loop.last -%}{{ '\\nAnswer:' }}{%- set state.waiting = true -%}{%- endif -%}
{%- elif turn.role == 'assistant' -%}
{{ ('' if state.waiting else ('' if loop.first else '\\n\\n') + 'Answer:') + ' ' + turn.content }}
{%- set state.waiting = false -%}
{%- elif turn.role == 'user' -%}
{{ 'Question: ' + turn.content + '\\nAnswer:' }}
{%- set state.waiting = true -%}
{%- elif turn.role == 'tool' and loop.previtem and loop.previtem.role in ('assistant', 'tool') -%}
{{ turn.content }}
{%- if loop.last or loop.nextitem.role not in ('tool', 'user') -%}{{ '\\nAnswer:' }}{%- endif -%}
{%- set state.waiting = true -%}
{%- else -%}
{{ refuse("it has no place for a message of role '" + turn.role + "' here") }}
{%- endif -%}
{%- endfor -%}
{%- if not state.waiting -%}
{{ refuse("the last message must be the user's, the system's, or the result of a call") }}
{%- endif -%}
"""
_SYSTEM_TEXT = "zqsaidzq"  # unlike anything that a template writes
_SYSTEM = {"role": "system", "content": _SYSTEM_TEXT}


def plain_conversation(turns: Sequence[Turn]) -> str:
    """Return turns in the plain form, up to the next answer.

    Raises:
        ValueError: the roles do not follow one another as questions and answers do.
    """
    return _plain.render(turns=turns)


def _refuse(reason: str) -> NoReturn:
    raise ValueError(
        f"the plain form does not take these messages: {reason}; change their roles or order, or "
        "use a model with a chat template"
    )


_plain = Environment().from_string(_PLAIN, globals={"refuse": _refuse})


class ChatTemplate:
    """Renders messages, with variables such as ``enable_thinking``, and tokenizes the result."""

    def __init__(self, codec: TextCodec, options: Mapping[str, object]) -> None:
        self._codec = codec
        self.options = dict(options)
        self._controls = list(codec.control_ids)
        self.in_parts = False  # it wants the text of a message as a list of one part
        # Random, so that no document can hold it.
        self.mark = f"[{secrets.token_hex(16)}"
        self._marks = re.compile(re.escape(self.mark) + r":(\d+)\]")

    def render(self, messages: Sequence[Message], **more: object) -> str:
        """Return messages as the template writes them, and variables of this call for it.

        Raises:
            ValueError: the template does not take them; the message quotes its error.
        """
        options = {"add_generation_prompt": True, **self.options, **more}
        # Its own type knows neither parts of messages nor variables of templates.
        apply: Callable[..., object] = self._codec.tokenizer.apply_chat_template
        if self.in_parts:
            messages = [_in_parts(message) for message in messages]
        try:
            return str(apply(list(messages), tokenize=False, **options))
        except TemplateError as error:
            raise ValueError(
                f"the chat template does not take these messages: {error}; change their roles or "
                "order"
            ) from error

    def try_render(self, messages: Sequence[Message], **more: object) -> str | None:
        """Return the same, or None where the template does not take them."""
        try:
            return self.render(messages, **more)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            return None

    @cached_property
    def takes_system_text(self) -> bool:
        """Return whether the template writes what a system message says."""
        user = {"role": "user", "content": "zquserzq"}
        written = self.try_render([_SYSTEM, user])
        return _SYSTEM_TEXT in (written or "")

    @cached_property
    def takes_system_text_alone(self) -> bool:
        """Return whether it does so where no message of a user follows."""
        return _SYSTEM_TEXT in (self.try_render([_SYSTEM]) or "")

    @cached_property
    def begins_thought(self) -> bool:
        """Return whether prompts end where the model is to think: after an opened ``<think>``."""
        written = self.render([{"role": "user", "content": "x"}])
        return written.rstrip().endswith(THOUGHT_BEGIN)

    def guard(self, text: str) -> str:
        """Return the text with a mark in place of every control token's text."""
        return self._codec.control.sub(
            lambda found: f"{self.mark}:{self._controls.index(found[0])}]", text
        )

    def unguarded(self, text: str) -> str:
        """Return the text that `guard` was given."""
        return self._marks.sub(lambda found: self._controls[int(found[1])], text)

    def encoded(self, rendered: str, *, after: str = "", ends: bool = False) -> Encoded:
        """Return the tokens of what the template wrote; marked texts are text again."""
        if not self._marks.search(rendered):
            return self._codec.encoded(rendered, after=after, as_text=False, ends=ends)
        encoded = Encoded()
        start = 0
        for index, part in enumerate(self._codec.control.split(rendered)):
            text = self.unguarded(part)
            if index % 2:
                tokens = Encoded([self._codec.control_ids[text]], [len(text)])
            else:
                tokens = self._codec.encoded(text, after="" if encoded.ids else after, ends=ends)
            encoded.append(tokens, start)
            start += len(text)
        return encoded

    def place_of_documents(self, rendered: str, content: str) -> tuple[int, int]:
        """Return where documents begin that end what a template wrote, and what they lost there.

        It may trim a message; the end is at the border, so white space at the beginning can go.

        Raises:
            ValueError: the documents are not there as they are.
        """
        written = self.unguarded(rendered)
        ways = [content, content.lstrip()]
        if len(ways[0]) > len(ways[1]):  # the template may write the same white space itself
            head = self.render([{"role": "user", "content": self.mark}]).partition(self.mark)[0]
            ways.sort(key=lambda way: len(written) - len(way) != len(head))
        for way in ways:
            if written.endswith(way):
                return len(written) - len(way), len(content) - len(way)
        raise ValueError(
            'the chat template changes the text of documents; use prompt_form="plain" or another '
            "template, so that the model reads what they say"
        )


def _in_parts(message: Message) -> Message:
    text = message.get("content")
    if not isinstance(text, str):
        return message
    return {**message, "content": [{"type": "text", "text": text}]}


def refuse_losses(messages: Sequence[Message], rendered: str) -> None:
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
