"""What can go wrong, as types. Every message says what was expected, what came, what to change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack


class SelfExtendError(Exception):
    """Base of every error that this package raises on purpose."""


class UnsupportedModelError(SelfExtendError, ValueError):
    """A model that can't be extended exactly; raised before anything about it is changed."""


class ModelLoadError(SelfExtendError):
    """A model, tokenizer or configuration that could not be found or read."""


class UnknownPretrainingWindow(SelfExtendError, ValueError):
    """A configuration that does not say how long a sequence its model was trained for."""


class UnknownMemoryError(SelfExtendError, ValueError):
    """A model whose memory can't be derived from its configuration; the message says why."""


class CacheMismatchError(SelfExtendError, ValueError):
    """Cached keys that do not belong to this model, these settings or these tokens."""


class ReadingFileError(SelfExtendError):
    """The file of a saved reading that could not be found, read or written."""


class CorruptReadingError(ReadingFileError, ValueError):
    """A file that is no saved reading, or was damaged since it was saved."""


class DocumentError(SelfExtendError, ValueError):
    """A document that can't be had whole; the message says which, what was found, what to do."""


class UnsupportedDocument(DocumentError):
    """A file of a kind that is not read, such as a picture or a program."""


class SchemaError(SelfExtendError, ValueError):
    """A JSON schema that can't be enforced as it is; raised before the model runs."""


class ToolError(SelfExtendError, ValueError):
    """Tools, a tool choice or a message about tools that can't be used as they are."""


class ConstraintError(SelfExtendError, RuntimeError):
    """A grammar that could not be followed to the end of an answer."""


class ServerError(SelfExtendError):
    """A server that answered with an error, or with what is no answer.

    Args:
        message: what went wrong, with the server's own words.
        status: of HTTP, if it answered.
        code: what the server calls the error, if it has a name for it.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class ServerUnreachable(ServerError):
    """A server that could not be reached, or said nothing for too long."""


class ServerBusy(ServerError):
    """A server that takes no more requests now, also after waiting as it asked.

    Args:
        message: what it said.
        retry_after: seconds after which it wants to be asked again, if it said so.
        status: of HTTP.
        code: what the server calls the error.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        status: int | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, status=status, code=code)
        self.retry_after = retry_after


class ServerAccessError(ServerError):
    """A server that wants another API key, or forbids what was asked."""


class ModelNotServed(ServerError):
    """A model that the server does not have; the message names those that it has."""


class PromptMismatch(ServerError):
    """What a server read is not what it was sent, by its own count of tokens.

    Args:
        message: what differs, and why that may be.
        sent: tokens of the prompt by this package's count, if that is what differs.
        read: tokens by the server's.
    """

    def __init__(self, message: str, *, sent: int | None = None, read: int | None = None) -> None:
        super().__init__(message)
        self.sent = sent
        self.read = read


class NotOnServer(SelfExtendError, NotImplementedError):
    """What a model in this process gives, and one on a server does not, such as evidence."""


class GenerationCancelled(SelfExtendError):
    """Work was cancelled before there was anything to hand back (during a prefill).

    Between tokens of an answer it is no error: that ends with ``finish_reason="cancelled"``.

    Args:
        done, total: tokens read before the cancellation was seen, and to be read in all.
    """

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"cancelled after reading {done} of {total} tokens")
        self.done = done
        self.total = total

    def __reduce__(self) -> tuple[type, tuple[int, int]]:
        return type(self), (self.done, self.total)


class BudgetFigures(TypedDict, total=False):  # what `ContextBudgetExceeded` takes by name
    needed: int
    available: int
    group_size: int | None
    neighbor_window: int | None
    remedies: Sequence[str]


class ContextBudgetExceeded(SelfExtendError):
    """A prompt and its answer do not fit the window; raised before the model does any work.

    No ``ValueError``: frameworks take those from a model as an answer that could not be parsed, log
    them, and continue with an empty one.

    Args:
        message: one sentence with the figures.
        needed: tokens asked for: prompt, reserve and answer together.
        available: tokens that the settings named here allow.
        group_size: the group size that ``available`` belongs to; None when it was plain attention.
        neighbor_window: the neighbor window that ``available`` belongs to, or None.
        remedies: what would help, each a clause that can follow "; ".
    """

    def __init__(
        self,
        message: str,
        *,
        needed: int,
        available: int,
        group_size: int | None = None,
        neighbor_window: int | None = None,
        remedies: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.needed = needed
        self.available = available
        self.group_size = group_size
        self.neighbor_window = neighbor_window
        self.remedies = tuple(remedies)

    def __str__(self) -> str:
        head = super().__str__()
        return f"{head}; {' or '.join(self.remedies)}" if self.remedies else head

    @property
    def excess(self) -> int:
        """Return how many tokens have to go for the request to fit."""
        return self.needed - self.available


class MemoryBudgetExceeded(ContextBudgetExceeded):
    """A plan that memory can't hold; raised before the model does any work.

    Args:
        device: the name of a device that lacks memory.
        needed_bytes: what is needed of it, at most.
        available_bytes: what it has.
        figures: those of `ContextBudgetExceeded`; ``available`` are the tokens that memory holds.
    """

    def __init__(
        self,
        message: str,
        *,
        device: str,
        needed_bytes: int,
        available_bytes: int,
        **figures: Unpack[BudgetFigures],
    ) -> None:
        super().__init__(message, **figures)
        self.device = device
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


class DocumentTooLarge(ContextBudgetExceeded):
    """A document that fits no prompt by itself, so that no grouping helps.

    Args:
        document: its name.
        index: its place among the documents.
        figures: those of `ContextBudgetExceeded`.
    """

    def __init__(
        self, message: str, *, document: str, index: int, **figures: Unpack[BudgetFigures]
    ) -> None:
        super().__init__(message, **figures)
        self.document = document
        self.index = index


def in_short(error: BaseException) -> str:
    """Return what another library's error says, in one line of a bearable length."""
    reason = " ".join(str(error).split()) or type(error).__name__
    longest = 300  # characters; some list all they know
    return reason if len(reason) <= longest else f"{reason[:longest]} ..."
