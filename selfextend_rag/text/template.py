"""A chat template of the tokenizer's, held to write what it is given, and to nothing else.

Text that reads like a control token of the template is put under a mark before rendering and is
text again afterwards, so no document can open a message or end one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from selfextend_rag.text.codec import Encoded, TextCodec
from selfextend_rag.text.messages import Message


class ChatTemplate:
    """Renders messages and tokenizes what was rendered.

    Args:
        codec: of the tokenizer whose template it is.
        options: variables for the template, such as ``enable_thinking``.
    """

    def __init__(self, codec: TextCodec, options: Mapping[str, Any]) -> None:
        self._codec = codec
        self.options = dict(options)
        self._controls = list(codec.control_ids)
        # Not to be guessed, so that no document can hold it.
        self.mark = f"[{secrets.token_hex(16)}"
        self._marks = re.compile(re.escape(self.mark) + r":(\d+)\]")

    def render(self, messages: Sequence[Message], **more: Any) -> str:
        """Return messages as the template writes them, and variables of this call for it.

        Raises:
            ValueError: the template does not take them; its own words are in the message.
        """
        options = {"add_generation_prompt": True, **self.options, **more}
        try:
            return self._codec.tokenizer.apply_chat_template(
                list(messages), tokenize=False, **options
            )
        except TemplateError as error:
            raise ValueError(
                f"the chat template does not take these messages: {error}; change their roles or "
                "order"
            ) from error

    def guard(self, text: str) -> str:
        """Return the text with a mark in place of every control token's text."""
        return self._codec.control.sub(
            lambda found: f"{self.mark}:{self._controls.index(found[0])}]", text
        )

    def unguarded(self, text: str) -> str:
        """Return the text with the control tokens' texts back in place of their marks."""
        return self._marks.sub(lambda found: self._controls[int(found[1])], text)

    def encoded(self, rendered: str, *, after: str = "", ends: bool = False) -> Encoded:
        """Return the tokens of what the template wrote; marked texts are text again."""
        if not self._marks.search(rendered):
            return self._codec.encoded(rendered, after=after, as_text=False, ends=ends)
        encoded = Encoded()
        start = 0
        for piece, is_control in _pieces(rendered, self._codec.control):
            text = piece if is_control else self.unguarded(piece)
            if is_control:
                part = Encoded([self._codec.control_ids[piece]], [len(piece)])
            else:
                part = self._codec.encoded(text, after="" if encoded.ids else after, ends=ends)
            encoded.append(part, start)
            start += len(text)
        return encoded

    def before_documents(self, written: str, content: str) -> tuple[str, int]:
        """Return what a template wrote before documents, and how many characters it left out.

        It may trim a message; the end is at the border, so white space at the beginning can go.

        Raises:
            ValueError: the documents are not there as they are.
        """
        ways = [content, content.lstrip()]
        if len(ways[0]) > len(ways[1]):  # the template may write the same white space itself
            head = self.render([{"role": "user", "content": self.mark}]).partition(self.mark)[0]
            ways.sort(key=lambda way: len(written) - len(way) != len(head))
        for way in ways:
            if written.endswith(way):
                return written[: len(written) - len(way)], len(content) - len(way)
        raise ValueError(
            'the chat template changes the text of documents; use prompt_form="plain" or another '
            "template, so that the model reads what they say"
        )


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


def _pieces(text: str, control: re.Pattern[str]) -> list[tuple[str, bool]]:
    """Return the text between control tokens, and those, in order; empty ones left out."""
    pieces: list[tuple[str, bool]] = []
    start = 0
    for found in control.finditer(text):
        pieces += [(text[start : found.start()], False), (found[0], True)]
        start = found.end()
    return [(piece, is_control) for piece, is_control in [*pieces, (text[start:], False)] if piece]
