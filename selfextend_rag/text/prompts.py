"""How documents, questions and conversations become token ids; the one place that says so.

The documents, read once, and what asks the question are each tokenized by itself, so a question put
to a reading runs on the very tokens of a fresh run. Without a chat template a prompt is
``{start token}{documents}\\n\\nQuestion: {question}\\nAnswer:``; with one it is a user message of
documents, instruction and ``Question: {question}``, blank lines between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from selfextend_rag.documents import Document, Picture, refuse_pictures
from selfextend_rag.evidence import Boxes, TokenRanges
from selfextend_rag.planning.encoding import PictureWork
from selfextend_rag.text.calls import OUR_FORM, CallForm, measured_form
from selfextend_rag.text.codec import Encoded, TextCodec
from selfextend_rag.text.messages import (
    BREAK,
    Message,
    Turn,
    calls_as_text,
    for_template,
    guarded,
    tools_text,
    turns_of,
    with_system_text,
)
from selfextend_rag.text.template import ChatTemplate, plain_conversation, refuse_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from selfextend_rag.model import PromptPictures

PromptForm = Literal["auto", "chat", "plain"]

INSTRUCTION = "Answer the question from the text above. If the text does not say, say that."


@dataclass(frozen=True, slots=True)
class PlacedPicture:
    """A picture, and the tokens of a prompt that it has: from ``start`` up to ``stop``."""

    picture: Picture
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What a model reads, or a part of it."""

    tokens: tuple[int, ...]  # titles and what the template writes included
    ranges: TokenRanges | None = None  # None without documents, or where they are not known
    media: tuple[PlacedPicture, ...] = ()  # whose tokens are negative numbers

    def __len__(self) -> int:
        return len(self.tokens)


class PromptBuilder:
    """Builds every prompt for one tokenizer.

    Args:
        tokenizer: a tokenizer of transformers.
        form: ``"chat"`` uses its chat template, ``"plain"`` does not, ``"auto"`` does if there is
            one.
        instruction: goes between documents and question in the chat form; may be empty.
        template_options: variables for the chat template, such as ``enable_thinking``.

    Raises:
        ValueError: the chat form is asked for and the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        form: PromptForm = "auto",
        instruction: str = INSTRUCTION,
        template_options: Mapping[str, object] | None = None,
    ) -> None:
        if form not in ("auto", "chat", "plain"):
            raise ValueError(f'form must be "auto", "chat" or "plain", got {form!r}')
        if not isinstance(instruction, str):
            raise ValueError(f"instruction must be a text, got {instruction!r}")
        if not isinstance(template_options, Mapping | None):
            raise ValueError(f"template_options must be a dictionary, got {template_options!r}")
        if form == "chat" and not tokenizer.chat_template:
            raise ValueError(
                "the chat form needs a chat template, and the tokenizer has none; take the plain "
                'form (prompt_form="plain", or "auto"), or set tokenizer.chat_template'
            )
        self.codec = TextCodec(tokenizer)
        self.chat = bool(tokenizer.chat_template) if form == "auto" else form == "chat"
        self._instruction = instruction
        self._template = ChatTemplate(self.codec, template_options or {})
        self._border = _Border.measured(self.codec)

    @property
    def answer_stops(self) -> tuple[str, ...]:
        """Return what ends an answer to a question, besides the end token.

        A line end in the plain form, in which models continue with questions of their own.
        """
        return () if self.chat else ("\n",)

    @property
    def skips_space(self) -> bool:
        """Return whether the space at the beginning of an answer is the prompt's: after a colon."""
        return not self.chat

    @property
    def thinks(self) -> bool:
        """Return whether prompts end in a thought that the template has begun."""
        return self.chat and self._template.begins_thought

    @property
    def call_form(self) -> CallForm:
        """Return how the model writes calls of tools: as its template does, or in ours."""
        return self._native_calls[0] if self._native_calls else OUR_FORM

    @cached_property
    def _native_calls(self) -> tuple[CallForm, bool] | None:
        """Return the template's own form of calls, and whether it takes arguments as text."""
        if not self.chat:
            return None
        return measured_form(self._template.try_render, self.codec.tokenizer.eos_token)

    def identity(self) -> dict[str, object]:
        """Return all that decides how documents and questions become tokens, as JSON values.

        Two builders of equal identity, on equal tokenizers, can continue each other's documents.
        """
        samples = [Document.from_text("One.", title="A"), Document.from_text("Two.")]
        return {
            "chat": self.chat,
            "instruction": self._instruction if self.chat else "",
            "template": self.codec.tokenizer.chat_template if self.chat else "",
            "template_options": self._template.options if self.chat else {},
            "documents": joined_documents(samples)[0],
            "question": list(self.question("Q?").tokens),
        }

    def documents(self, documents: Sequence[Document], *, ranges: bool = True) -> Prompt:
        """Return all that comes before a question and does not depend on it, with ranges or not.

        Raises:
            ValueError: there are none, or the chat template changes what they say.
        """
        text, starts, stops = joined_documents(documents)
        place, lost = 0, 0
        if self.chat:
            rendered = self._rendered_halves(text, "")[0]
            place, lost = self._template.place_of_documents(rendered, self._left(text))
            encoded = self._template.encoded(rendered, ends=ranges)
        else:
            start = self.codec.start()
            encoded = Encoded(start, [0] * len(start))
            encoded.append(self.codec.encoded(text + self._border.left, ends=ranges), 0)
        tokens = tuple(encoded.ids)
        if encoded.ends is None:
            return Prompt(tokens)
        begins = [start + place - lost for start in starts]
        firsts = [max(begin, place) for begin in begins]
        stops = [stop + place - lost for stop in stops]
        return Prompt(tokens, TokenRanges.within(encoded.ends, begins, firsts, stops))

    @property
    def reads_pictures(self) -> bool:
        """Return whether documents and messages may have pictures."""
        return False

    def picture_tokens(self, document: Document) -> int:
        """Return how many tokens the pictures of a document are.

        Raises:
            DocumentError: it has some, and these prompts are for a model of text.
        """
        refuse_pictures([document])
        return 0

    def picture_works(self, pictures: Sequence[Picture]) -> list[PictureWork]:
        """Return what a model is given for pictures; nothing, as it reads text alone."""
        return []

    def picture_numbers(self, document: Document) -> list[int]:
        """Return the negative numbers that a prompt has for the pictures of a document."""
        return []

    def shortcomings(self, document: Document) -> tuple[str, ...]:
        """Return what the model will not see of a document, besides the document's remarks."""
        return ()

    def pictures_in(self, prompt: Prompt, model: PreTrainedModel) -> PromptPictures | None:
        """Return the pictures of a prompt for the model that is to read it, if it has some."""
        return None

    def picture_boxes(self, picture: Picture, model: PreTrainedModel) -> Boxes | None:
        """Return where in a picture each of its tokens comes from, if the model keeps that."""
        return None

    def question(self, question: str, history: Sequence[tuple[str, str]] = ()) -> Prompt:
        """Return what follows ``documents``.

        Args:
            question: what is asked.
            history: earlier questions on the same documents, each with its answer; the first
                question shares its message with the documents.

        Raises:
            ValueError: the question is blank, or the chat template does not write the history.
        """
        turns = _turns(question, history)
        after = self._border.after
        if self.chat:
            rendered = self._rendered_halves("", turns[0].content, turns[1:])[1]
            return Prompt(tuple(self._template.encoded(rendered, after=after).ids))
        text = self._border.right + plain_conversation(turns)
        return Prompt(tuple(self.codec.text(text, after=after)))

    def about(
        self, documents: Sequence[Document], question: str, history: Sequence[tuple[str, str]] = ()
    ) -> list[dict[str, object]] | str:
        """Return ``documents`` and ``question`` for who writes the prompt: messages, or a text.

        They are messages for a chat template, or, in the plain form, the text after the start
        token.

        Raises:
            ValueError: the question is blank, or there are no documents.
        """
        text, turns = joined_documents(documents)[0], _turns(question, history)
        if not self.chat:
            return text + BREAK + plain_conversation(turns)
        parts = [text, *([self._instruction] if self._instruction else [])]
        first = BREAK.join([*parts, f"Question: {turns[0].content}"])
        later: list[dict[str, object]] = [
            {"role": turn.role, "content": turn.content} for turn in turns[1:]
        ]
        return [{"role": "user", "content": first}, *later]

    def answer(self, text: str) -> Prompt:
        """Return an answer that was written elsewhere, as it would follow ``question``.

        Raises:
            ValueError: it is blank.
        """
        if not text.strip():
            raise ValueError("the answer is empty")
        text, after = (text, "\n") if self.chat else (f" {text.lstrip()}", ":")
        return Prompt(tuple(self.codec.text(text, after=after)))

    def prompt(
        self, prompt: str | Sequence[Message], tools: Sequence[Mapping[str, object]] = ()
    ) -> Prompt:
        """Return a text or a conversation.

        A text is one user message to a chat model; in the plain form it is continued as it is.
        Where a chat template writes no system text, it begins the first user message. In the plain
        form a conversation, or a text with tools, is written as the system's text and then, for
        each user message and its reply, ``Question: ...`` and ``Answer: ...``.

        Args:
            prompt: the text, or messages.
            tools: what the model may call, in OpenAI's form and checked; written by its chat
                template if that takes tools, and described in a system text otherwise.

        Raises:
            ValueError: it is empty, a message is not of a kind that can be written, or the template
                does not write what it says.
        """
        as_it_is = isinstance(prompt, str) and not self.chat and not tools
        turns = turns_of(
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        )
        if not any(turn.content or turn.calls for turn in turns):
            raise ValueError("the prompt is empty")
        if self.chat:
            return Prompt(tuple(self._template.encoded(self._rendered_chat(turns, tools)).ids))
        if tools:
            turns = with_system_text(turns, tools_text(tools), own_message=True)
        text = turns[0].content if as_it_is else plain_conversation(calls_as_text(turns))
        return Prompt((*self.codec.start(), *self.codec.text(text)))

    def count(self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]] = ()) -> int:
        """Return the tokens of ``prompt``, or a bound where it can't be written.

        Messages that no prompt could end with, or begin with, are counted too, as those that trim a
        conversation ask for: each as a prompt of its own.

        Raises:
            ValueError: a message holds anything but text.
        """
        turns = turns_of(messages, pictures=self.reads_pictures)
        try:
            return len(self.prompt(messages, tools))
        except ValueError:  # their roles or order; or all are empty
            texts = [turn.content for turn in calls_as_text(turns)]
        texts += [tools_text(tools)] if tools else []
        said = self.codec.text(".")
        frame = len(self.prompt([{"role": "user", "content": "."}])) - len(said)
        seen = [picture for turn in turns for picture in turn.pictures]
        looked = self.picture_tokens(Document.from_text(".", pictures=_at_start(seen)))
        return looked + sum(frame + len(self.codec.text(text)) for text in texts)

    def _rendered_chat(self, turns: list[Turn], tools: Sequence[Mapping[str, object]]) -> str:
        """Return a conversation as the chat template writes it."""
        guard, native = self._template.guard, self._native_calls
        more: dict[str, object] = {}
        if tools and native:
            more["tools"] = guarded(tools, guard)
        elif not native:
            if any(turn.calls or turn.role == "tool" for turn in turns):
                turns = calls_as_text(turns, results_as_user=True)
            if tools:
                own = self._template.takes_system_text
                turns = with_system_text(turns, tools_text(tools), own_message=own)
        roles = [turn.role for turn in turns]
        if roles[:2] == ["system", "user"] and not self._template.takes_system_text:
            turns = with_system_text(turns[1:], turns[0].content, own_message=False)
        elif roles == ["system"] and not self._template.takes_system_text_alone:
            turns = [replace(turns[0], role="user")]
        written = for_template(turns, arguments_as_text=bool(native and native[1]), guard=guard)
        rendered = self._template.render(written, **more)
        refuse_losses(written, rendered)
        return rendered

    def _left(self, documents: str) -> str:
        """Return what a chat's user message holds before the border."""
        parts = [documents, *([self._instruction] if self._instruction else [])]
        return BREAK.join(parts) + self._border.left

    def _rendered_halves(
        self, documents: str, question: str, later: Sequence[Turn] = ()
    ) -> tuple[str, str]:
        """Return what the template writes before and after the border in a chat on documents."""
        left = self._template.guard(self._left(documents))
        right = f"{self._border.right}Question: {self._template.guard(question)}"
        border = f"{self._template.mark}:border]"
        first = {"role": "user", "content": f"{left}{border}{right}"}
        others = for_template(later, arguments_as_text=False, guard=self._template.guard)
        rendered = self._template.render([first, *others])
        before, found, after = rendered.partition(border)
        if not found or border in after:
            raise ValueError("the chat template does not write a user message once and as it is")
        if later:
            refuse_losses([{**first, "content": right}, *others], after)
            if before != self._rendered_halves(documents, question)[0]:
                raise ValueError(
                    "the chat template writes the first message differently once there are "
                    "more, so a conversation can't follow documents that were read; ask without "
                    "history"
                )
        return before, after


def _at_start(pictures: Sequence[Picture]) -> list[Picture]:
    return [replace(picture, start=0) for picture in pictures]


def _turns(question: str, history: Sequence[tuple[str, str]]) -> list[Turn]:
    if not question.strip():
        raise ValueError("the question is empty")
    said = [(("user", asked), ("assistant", answer)) for asked, answer in history]
    turns = [Turn(role, text) for pair in said for role, text in pair]
    return [*turns, Turn("user", question)]


def prompt_state(prompts: PromptBuilder) -> tuple[object, ...]:
    """Return what changes when a tokenizer is given other tokens or another chat template."""
    tokenizer = prompts.codec.tokenizer
    template = repr(tokenizer.chat_template) if prompts.chat else ""
    return len(tokenizer), repr(tokenizer.special_tokens_map), template


class _Border(NamedTuple):
    """Where the blank line before a question belongs, and how to tokenize what follows.

    Vocabularies differ in what they join across it: some a full stop and the line ends after it,
    some all line ends in a row. Which way gives the tokens of the undivided text is measured.
    """

    left: str
    right: str
    after: str

    @classmethod
    def measured(cls, codec: TextCodec) -> _Border:
        head, tail = "That is the end.", "Question: Who?\nAnswer:"
        whole = codec.text(head + BREAK + tail)
        for ways in (("", BREAK, ""), (BREAK, "", ""), ("", BREAK, "a"), (BREAK, "", "\n")):
            left, right, after = ways
            if codec.text(head + left) + codec.text(right + tail, after=after) == whole:
                return cls(*ways)
        return cls("", BREAK, "")


def joined_documents(documents: Sequence[Document]) -> tuple[str, list[int], list[int]]:
    """Return documents as one text, and where in it the text of each one starts and stops.

    They are joined by blank lines, white space at their ends left out, each under a heading
    ``# {title}`` on one line; a document without a title is called by its number, and one whose
    title has been seen gets a number behind it. A single document has no heading.

    Raises:
        DocumentError: a document has pictures.
        ValueError: there are no documents.
    """
    if not documents:
        raise ValueError("there are no documents; a reading needs at least one")
    refuse_pictures(documents)
    parts, starts, stops, place = list[str](), list[int](), list[int](), 0
    for heading, document in zip(_headings(documents), documents, strict=True):
        before = f"# {heading}{BREAK}" if len(documents) > 1 else ""
        parts.append(before + document.text.rstrip())
        starts.append(place + len(before))
        stops.append(place + len(parts[-1]))
        place = stops[-1] + len(BREAK)
    return BREAK.join(parts), starts, stops


def _headings(documents: Sequence[Document]) -> list[str]:
    """Return a heading for each document, no two alike."""
    titles = [" ".join(document.title.split()) for document in documents]
    given = set(titles)
    headings: dict[str, None] = {}
    for number, title in enumerate(titles, 1):
        heading = wanted = title or f"Document {number}"
        copies = 1
        while heading in headings or (heading != title and heading in given):
            copies += 1
            heading = f"{wanted} ({copies})"
        headings[heading] = None
    return list(headings)
