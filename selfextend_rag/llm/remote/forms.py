"""How a prompt is sent: as tokens, where a server takes them, and otherwise as text or messages.

Tokens are the very ones that `LongContextLLM` would run, so the server's count must be exactly
theirs. Messages are written by the server's chat template, which may differ from the tokenizer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfextend_rag.documents import Document
from selfextend_rag.llm.base import History
from selfextend_rag.llm.remote.counting import ServedPrompts
from selfextend_rag.llm.remote.http import JsonObject
from selfextend_rag.llm.remote.server import Served
from selfextend_rag.output.tools import ToolRequest
from selfextend_rag.text.messages import Message, calls_as_text, for_template, turns_of
from selfextend_rag.text.prompts import PromptBuilder
from selfextend_rag.text.template import plain_conversation

CHAT, TEXT = "/chat/completions", "/completions"


@dataclass(frozen=True, slots=True)
class SentPrompt:
    """A prompt as it is sent.

    Args:
        path: where to, after the server's address.
        body: the fields of the request that say it.
        tokens: of the prompt, by this package's count.
        messages: how many the server writes; 0 for a text.
        exact: the server is given the tokens, and not the text.
        described: of ``tokens`` those that are no text of a message, where tools are described:
            a server may have words of its own for them.
    """

    path: str
    body: JsonObject
    tokens: int
    messages: int = 0
    exact: bool = False
    described: int = 0


class Sender:
    """Writes prompts for one server.

    Args:
        served: the model on it.
        prompts: the model's prompts.
        template_options: variables for the chat template, for the server to use.
    """

    def __init__(
        self, served: Served, prompts: PromptBuilder, template_options: Mapping[str, object] | None
    ) -> None:
        self.served = served
        self.prompts = prompts
        self.takes_tokens = served.tokenizes and not isinstance(prompts, ServedPrompts)
        self._more: JsonObject = {}
        if template_options:
            self._more = {"chat_template_kwargs": dict(template_options)}

    def about(
        self,
        documents: Sequence[Document],
        read: Sequence[int],
        question: str,
        history: History = (),
    ) -> SentPrompt:
        """Return a question about documents, whose tokens are given.

        Raises:
            ValueError: the question is blank, or a text would become a control token.
        """
        if self.takes_tokens:
            return self._tokens([*read, *self.prompts.question(question, history).tokens])
        written = self.prompts.about(documents, question, history)
        texts = [*(document.text for document in documents), question]
        self._refuse_control_texts([*texts, *(text for pair in history for text in pair)])
        return self._text(written) if isinstance(written, str) else self._chat(written, None)

    def conversation(
        self, prompt: str | Sequence[Message], request: ToolRequest | None
    ) -> SentPrompt:
        """Return a text or a conversation, with tools.

        Raises:
            ValueError: it can't be written, or a text would become a control token.
        """
        if self.takes_tokens and request is None:
            return self._tokens(list(self.prompts.prompt(prompt).tokens))
        if isinstance(prompt, str):
            self._refuse_control_texts([prompt])
            if not self.prompts.chat and request is None:
                return self._text(prompt)
            return self._chat([{"role": "user", "content": prompt}], request)
        turns = turns_of(prompt)
        self._refuse_control_texts([turn.content for turn in turns])
        if not self.prompts.chat and request is None:
            return self._text(plain_conversation(calls_as_text(turns)))
        return self._chat(for_template(turns, arguments_as_text=True, guard=str), request)

    def smallest(self, path: str) -> SentPrompt:
        """Return a prompt of one character, to see what the server writes around it."""
        if path == TEXT:
            return self._text(".")
        return self._chat([{"role": "user", "content": "."}], None)

    def _tokens(self, ids: list[int]) -> SentPrompt:
        return SentPrompt(TEXT, {"prompt": ids}, len(ids), exact=True)

    def _text(self, text: str) -> SentPrompt:
        return SentPrompt(TEXT, {"prompt": text}, len(self.prompts.prompt(text)))

    def _chat(self, messages: Sequence[Message], request: ToolRequest | None) -> SentPrompt:
        body: JsonObject = {"messages": list(messages), **self._more}
        described: Sequence[Mapping[str, object]] = ()
        if request is not None:
            body |= _tools(request)
            described = request.tools
        tokens = len(self.prompts.prompt(messages, described))
        frames = 0
        if described:
            texts = [turn.content for turn in turns_of(messages)]
            frames = tokens - sum(len(self.prompts.codec.text(text)) for text in texts)
        return SentPrompt(CHAT, body, tokens, max(1, len(messages)), described=max(0, frames))

    def _refuse_control_texts(self, texts: Sequence[str]) -> None:
        if self.served.guards:
            return
        if isinstance(self.prompts, ServedPrompts):
            self.prompts.refuse_control_texts(texts)
            return
        found = next(filter(None, map(self.prompts.codec.control.search, texts)), None)
        if found is not None:
            raise ValueError(
                f"a text holds {found[0]!r}, which would become a control token on this server; "
                "leave it out, or ask a server that takes tokens or keeps such text apart"
            )


def _tools(request: ToolRequest) -> JsonObject:
    """Return what may or must be called, in OpenAI's form."""
    choice: object = "required" if request.forced else "auto"
    if request.forced and len(request.callable) < len(request.tools):
        (name,) = request.callable
        choice = {"type": "function", "function": {"name": name}}
    return {
        "tools": [dict(tool) for tool in request.tools],
        "tool_choice": choice,
        "parallel_tool_calls": request.parallel,
    }
