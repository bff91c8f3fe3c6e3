"""What layers that keep every token have in common: room, and the settings of their keys."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, TypeVar

from torch import Tensor
from transformers.cache_utils import DynamicLayer

from selfextend_rag.attention import GroupedKeys
from selfextend_rag.errors import CacheMismatchError
from selfextend_rag.positions import SelfExtend

FIRST_CAPACITY = 256
GROWTH = 1.5

_Layer = TypeVar("_Layer", bound="FullLayer")


class FullLayer(DynamicLayer):
    """Keys and values of one layer, all that came; un-rotated when the model is extended.

    The keys that `update` returns carry the layer as the attribute ``cache_layer``, where attention
    finds ``grouped_keys``.

    Attributes:
        grouped_keys: rotated keys that are kept beside the others; None where none are kept.

    Args:
        capacity: tokens to make room for at the first update; more is allocated when needed.
    """

    grouped_keys: GroupedKeys | None = None

    def __init__(self, capacity: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.capacity = max(capacity, 0)
        self._filled_under: SelfExtend | None = None
        self._noted = 0  # tokens that came under those settings
        self._expected = False  # the next ones come from an extended model

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return views of all that is held and can't be made again, by name."""

    @abstractmethod
    def emptied(self, length: int, filled_under: SelfExtend | None, capacity: int) -> FullLayer:
        """Return a layer of the same shapes, whose ``length`` tokens are to be written.

        Args:
            length: tokens; the ``tensors`` of the new layer are views of so many.
            filled_under: the settings under which they came.
            capacity: tokens to make room for.
        """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held, free room included."""

    @property
    def filled_under(self) -> SelfExtend | None:
        """The settings under which the cached keys came; None for plain attention."""
        return self._filled_under

    def expect(self) -> None:
        """Take note that an extended model is about to add tokens; a plain one never says so."""
        self._expected = True

    def belong_to(self, settings: SelfExtend, new_tokens: int) -> None:
        """Take note of the settings under which keys come; the last ``new_tokens`` just came.

        Raises:
            CacheMismatchError: the keys before were cached plain, or under other settings.
        """
        before = self.get_seq_length() - new_tokens
        if before > 0 and self._filled_under != settings:
            how = "plain attention" if self._filled_under is None else f"{self._filled_under}"
            raise CacheMismatchError(
                f"{before} tokens were cached under {how}, and can't be continued under {settings};"
                " read them again with a new cache"
            )
        self._filled_under, self._noted = settings, self.get_seq_length()

    def start_of(self, length: int, capacity: int) -> FullLayer:
        """Return a copy of the first ``length`` tokens, with room for ``capacity``."""
        new = self.emptied(length, self._filled_under, capacity)
        mine = self.tensors()
        for name, place in new.tensors().items():
            place.copy_(mine[name][:, :, : place.shape[2]])
        return new

    def reset(self) -> None:
        """Drop everything, the buffers too."""
        self._filled_under, self._noted = None, 0
        self.keys = self.values = None
        self.is_initialized = False

    def _enough(self, end: int, room: int) -> int:
        """Return the tokens to make room for: as was told, or half as many more than there are."""
        told = self.capacity if end <= self.capacity else int(room * GROWTH)
        return max(end, told, FIRST_CAPACITY)

    def _check_noted(self, length: int) -> None:
        """Refuse keys that come plain after keys that came extended."""
        if self._filled_under is not None and (length > self._noted or not self._expected):
            raise CacheMismatchError(
                f"{self._noted} tokens were cached under {self._filled_under}, and can't be "
                "continued under plain attention; read them again with a new cache"
            )
        self._expected = False

    def _note(self, new: _Layer, length: int, filled_under: SelfExtend | None) -> _Layer:
        """Give a new layer the notes of this one, for ``length`` tokens."""
        # Where keys are expanded behind the cache (latent attention), nobody notes the settings.
        noted = self._filled_under is not None
        new._filled_under, new._noted = (filled_under if noted else None), length
        return new
