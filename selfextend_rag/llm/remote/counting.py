"""Prompts counted by a server's own tokenizer, where this process has none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from selfextend_rag.documents import Document
from selfextend_rag.errors import ContextBudgetExceeded, ServerError
from selfextend_rag.llm.remote.server import Served
from selfextend_rag.text.messages import BREAK, Message, calls_as_text, for_template, turns_of
from selfextend_rag.text.prompts import Prompt, PromptBuilder, PromptForm, joined_documents
from selfextend_rag.text.template import plain_conversation

# What control tokens of common vocabularies look like.
_CONTROL = re.compile(
    r"<\|[^|\s]{1,40}\|>|<\uff5c.{1,40}?\uff5c>|</?[a-z]+(?:_[a-z]+)*>|\[/?[A-Z_]{2,30}\]"
)


class ServedTokenizer:
    """What the rest of the package asks of a tokenizer, as far as a server says it."""

    chat_template = None
    special_tokens_map: Mapping[str, str] = {}
    all_special_tokens: Sequence[str] = ()

    def __init__(self, served: Served) -> None:
        self.served = served

    def __len__(self) -> int:
        return 0  # not known; it stays what it is while the server runs

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text alone."""
        return self.served.tokenized(prompt=text) if text else []


class _ServedCodec:
    def __init__(self, tokenizer: ServedTokenizer) -> None:
        self.tokenizer = tokenizer

    def text(self, text: str, *, after: str = "") -> list[int]:
        del after  # a token more or less
        return self.tokenizer(text)


class ServedPrompts(PromptBuilder):
    """Counts prompts that the server writes and tokenizes; their tokens are never sent.

    Documents and questions are counted one by one, so together they may be a few tokens off;
    `PromptBuilder.prompt` is exact.

    Args:
        served: the model on the server.
        form: ``"chat"``, ``"plain"`` or ``"auto"``, which looks whether there is a chat template.
        instruction: goes between documents and question in the chat form; may be empty.
    """

    def __init__(self, served: Served, *, form: PromptForm = "auto", instruction: str) -> None:
        if form not in ("auto", "chat", "plain"):
            raise ValueError(f'form must be "auto", "chat" or "plain", got {form!r}')
        self._served = served
        self._instruction = instruction
        self.codec = _ServedCodec(ServedTokenizer(served))  # type: ignore[assignment]  # counts alone
        self.chat = form == "chat" or (form == "auto" and self._has_template())

    @property
    def thinks(self) -> bool:
        """Return False: whether prompts end in a thought is the server's to know."""
        return False

    def documents(self, documents: Sequence[Document], *, ranges: bool = True) -> Prompt:
        """Return the tokens of documents and what is around them."""
        del ranges  # they are not known
        text = joined_documents(documents)[0]
        if not self.chat:
            return Prompt(tuple(self._served.tokenized(prompt=text, add_special_tokens=True)))
        parts = [text, *([self._instruction] if self._instruction else [])]
        return self.prompt([{"role": "user", "content": BREAK.join(parts)}])

    def question(self, question: str, history: Sequence[tuple[str, str]] = ()) -> Prompt:
        """Return the tokens of a question after its history."""
        if not question.strip():
            raise ValueError("the question is empty")
        texts = [*(text for pair in history for text in pair), question]
        tokens = [x for text in texts for x in self.codec.text(f"{BREAK}Question: {text}\nAnswer:")]
        frame = self._frame() * 2 * len(history) if self.chat else 0
        return Prompt((*tokens, *[0] * frame))

    def answer(self, text: str) -> Prompt:
        """Return the tokens of an answer."""
        return Prompt(tuple(self.codec.text(text)))

    def prompt(
        self, prompt: str | Sequence[Message], tools: Sequence[Mapping[str, object]] = ()
    ) -> Prompt:
        """Return the tokens of a text or of a conversation, as the server will read it."""
        if isinstance(prompt, str) and not self.chat and not tools:
            return Prompt(tuple(self._served.tokenized(prompt=prompt, add_special_tokens=True)))
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        turns = turns_of(asked)
        if not self.chat and not tools:
            return self.prompt(plain_conversation(calls_as_text(turns)))
        written = for_template(turns, arguments_as_text=True, guard=str)
        more = {"tools": list(tools)} if tools else {}
        return Prompt(tuple(self._served.tokenized(messages=written, **more)))

    def count(self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]] = ()) -> int:
        """Return the tokens of ``prompt``, or a bound where the server can't write it."""
        try:
            return len(self.prompt(messages, tools))
        except (ServerError, ValueError):  # their roles or order
            frame = self._frame() if self.chat else 0
            texts = [turn.content for turn in calls_as_text(turns_of(messages))]
            return sum(frame + len(self.codec.text(text)) for text in texts)

    def refuse_control_texts(self, texts: Sequence[str]) -> None:
        """Refuse texts that would become control tokens on the server.

        What looks like one is asked for: it is one if it is a single token.

        Raises:
            ValueError: a text holds such a one.
        """
        for like in dict.fromkeys(x for text in texts for x in _CONTROL.findall(text)):
            if len(self.codec.text(like)) == 1:
                raise ValueError(
                    f"a text holds {like!r}, which may be a control token to the server; give "
                    "tokenizer= the model's hub id or folder, so that it stays text"
                )

    def _has_template(self) -> bool:
        try:
            self._frame()
        except (ServerError, ContextBudgetExceeded):
            return False
        return True

    def _frame(self) -> int:
        """Return the tokens that a chat template writes around a message."""
        said = [{"role": "user", "content": "."}]
        return len(self._served.tokenized(messages=said)) - len(self.codec.text("."))
