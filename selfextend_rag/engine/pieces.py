"""Whether a model goes on from a cache with several tokens: measured on it, once.

Some models in transformers use their state for a single next token alone, and begin anew, without a
word, when more than one comes; some, in earlier versions, keep it in their modules, where the next
prompt writes over it. Their prompts have to be read whole.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.cache.rewind import has_state
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.model import switched
from selfextend_rag.model.agreement import (
    FAILURES,
    LOW_PRECISION_TOLERANCE,
    disagreement,
    failure,
)
from selfextend_rag.model.inspection import sample_tokens

if TYPE_CHECKING:
    from selfextend_rag.engine.engine import Engine

# Of the largest logit, in 16 bits: on small random models another order of sums changes 0.01 of it,
# a lost state 0.06 or more. Models without a state are given the usual room.
_TOLERANCE_OF_A_STATE = 0.05
_CUTS = (0, 12, 30, 32)  # the pieces of 32 tokens; few are left for a state to come back
_BETWEEN = 8  # tokens of another prompt, read before the last piece

_objections: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


def pieces_objection(engine: Engine) -> str:
    """Return why prompts can't be read in pieces, in words; empty if they can.

    For who holds the model's turn. Takes five runs of 32 tokens or fewer, once for a model.
    """
    if engine.model not in _objections:
        with switched(engine.model, None):
            _objections[engine.model] = _measured(engine)
    return _objections[engine.model]


def refuse_pieces(engine: Engine, what: str) -> None:
    """Refuse to read in pieces with a model that can't.

    Args:
        engine: the model.
        what: to do instead.

    Raises:
        UnsupportedModelError: it can't.
    """
    objection = pieces_objection(engine)
    if objection:
        raise UnsupportedModelError(
            f"{type(engine.model).__name__} can't go on from what it has read with more than one "
            f"token at a time: {objection}; {what}"
        )


def _measured(engine: Engine) -> str:
    model, tokens = engine.model, sample_tokens(engine.model)[0].tolist()
    try:
        cache = SelfExtendCache(model.config)
        whole = engine.forward([tokens], cache)
        if cache.get_seq_length() != len(tokens):
            return ""  # it keeps nothing in a cache, which is refused wherever one is wanted
        filled = (getattr(layer, "is_initialized", True) for layer in cache.layers)
        stateful = has_state(cache) or not all(filled)  # or it is somewhere else
    except FAILURES:
        return ""  # whoever runs it will see for himself
    try:
        cache = SelfExtendCache(model.config)
        for begin, end in pairwise(_CUTS):
            if end == len(tokens):
                engine.forward([tokens[-_BETWEEN:]], SelfExtendCache(model.config))
            pieces = engine.forward([tokens[begin:end]], cache)
    except FAILURES as error:
        return failure(error)
    low = _TOLERANCE_OF_A_STATE if stateful else LOW_PRECISION_TOLERANCE
    return disagreement(whole, pieces, model.dtype, low)
