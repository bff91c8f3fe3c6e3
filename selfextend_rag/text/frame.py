"""Prompts whose frame the caller writes: a document with all before it, and all that follows it."""

from __future__ import annotations

from collections.abc import Sequence

from selfextend_rag.documents import Document, refuse_pictures
from selfextend_rag.text.picture_prompts import PicturePrompts
from selfextend_rag.text.prompts import Prompt, PromptBuilder

_TAIL = 64  # characters at each side of a border that decide how it is tokenized


class FramedQuestion(str):
    """What follows a document, and the text that the answer begins with.

    Args:
        text: the rest of the prompt; a chat's user message ends with it.
        begin: the beginning of the answer, which is given and no part of what is generated.
    """

    begin: str

    def __new__(cls, text: str, begin: str = "") -> FramedQuestion:
        made = super().__new__(cls, text)
        made.begin = begin
        return made


class FramedPrompts(PromptBuilder):
    """Builds prompts of a document and a question with nothing of its own around them.

    Without a chat template a prompt is the start token, the document's text and the question as
    they are; with one it is a user message of both. Answers keep the space that they begin with,
    and end by the model's end token alone.
    """

    @property
    def answer_stops(self) -> tuple[str, ...]:
        """Return no texts: a frame says itself what ends an answer."""
        return ()

    @property
    def skips_space(self) -> bool:
        """Return that the space at the beginning of an answer is a part of it."""
        return False

    def split(self, document: str, question: str) -> tuple[str, str]:
        """Return both with the white space between them on the side where tokens need it.

        Vocabularies differ in what they join across a line end. Wherever one of the two sides
        gives the tokens of the undivided text, it is taken.
        """
        bare = question.lstrip()
        space = question[: len(question) - len(bare)]
        if not space or not bare:
            return document, question
        left, right = document[-_TAIL:], bare[:_TAIL]
        whole = self.codec.text(left + space + right)
        parts = self.codec.text(left + space) + self._continued(right)
        apart = self.codec.text(left) + self._continued(space + right)
        if parts == whole != apart:
            return document + space, bare
        return document, question

    def documents(self, documents: Sequence[Document], *, ranges: bool = True) -> Prompt:
        """Return the start of a prompt: one document's text as it is.

        Raises:
            DocumentError: it has pictures.
            ValueError: there is not one document.
        """
        refuse_pictures(documents)
        text = _only(documents).text
        if self.chat:
            return Prompt(tuple(self._template.encoded(self._halves(text, "")[0]).ids))
        return Prompt((*self.codec.start(), *self.codec.text(text)))

    def question(self, question: str, history: Sequence[tuple[str, str]] = ()) -> Prompt:
        """Return the rest of a prompt, up to where the answer continues.

        Raises:
            ValueError: it is empty, or there is a history, for which frames have no form.
        """
        if history:
            raise ValueError("a framed question has no history")
        begin = getattr(question, "begin", "")
        if not question and not begin:
            raise ValueError("the question is empty")
        if not self.chat:
            return Prompt(tuple(self._continued(str(question) + begin)))
        rendered = self._halves("", question)[1]
        after = "a" if rendered[:1].isspace() else "\n"
        tokens = self._template.encoded(rendered, after=after).ids
        return Prompt((*tokens, *(self._continued(begin) if begin else ())))

    def answer(self, text: str) -> Prompt:
        """Return an answer that was written elsewhere, as it is.

        Raises:
            ValueError: it is empty.
        """
        if not text:
            raise ValueError("the answer is empty")
        return Prompt(tuple(self._continued(text)))

    def _continued(self, text: str) -> list[int]:
        """Return the tokens of a text in the middle of others: no space of a beginning."""
        return self.codec.text(text, after="a" if text[:1].isspace() else "\n")

    def _halves(self, document: str, question: str) -> tuple[str, str]:
        """Return what the template writes of a user message before and after the border."""
        guard, border = self._template.guard, f"{self._template.mark}:border]"
        content = f"{guard(document)}{border}{guard(question)}"
        rendered = self._template.render([{"role": "user", "content": content}])
        before, found, after = rendered.partition(border)
        if not found or border in after:
            raise ValueError("the chat template does not write a user message once and as it is")
        return before, after


class FramedPicturePrompts(FramedPrompts, PicturePrompts):
    """Builds such prompts of a document that may have pictures; see `PicturePrompts`."""

    def documents(self, documents: Sequence[Document], *, ranges: bool = True) -> Prompt:
        """Return the start of a prompt: one document's text and pictures as they are.

        Raises:
            DocumentError: the processor does not take a picture.
            ValueError: there is not one document, or the chat template changes what it says.
        """
        document = _only(documents)
        if not document.pictures:
            return super().documents(documents, ranges=ranges)
        text = self._marked(document).text
        parts = (self._halves(text, "")[0] if self.chat else text).split(self._mark)
        if len(parts) != len(document.pictures) + 1:
            raise ValueError("the chat template does not write a user message once and as it is")
        encoded, placed = self._with_pictures(parts, document.pictures, ends=False)
        return Prompt(tuple(encoded.ids), None, tuple(placed))


def _only(documents: Sequence[Document]) -> Document:
    if len(documents) != 1:
        raise ValueError(f"a frame holds one document, got {len(documents)}")
    return documents[0]
