"""Whether a model goes on from a recurrent state with several tokens: measured on it, once.

Some models in transformers use their state for a single next token alone, and begin anew, without a
word, when more than one comes. Their prompts have to be read whole.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.cache.cutting import has_state
from selfextend_rag.engine.forward import Forwards
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.patch.inspect_model import sample_tokens

# Of the largest logit: far above what another order of sums does, far below a state that is lost.
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
_LOW_PRECISION_TOLERANCE = 0.15
_FIRST = 12  # tokens of the first piece, of 32

_lost: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def loses_its_state(engine: Forwards, cache: Cache) -> bool:
    """Return whether several tokens at a time, after others, give other logits than at once.

    For who holds the model's turn. Models without a recurrent state are not looked at.
    """
    if not has_state(cache):
        return False
    if engine.model not in _lost:
        _lost[engine.model] = _measured(engine)
    return _lost[engine.model]


def refuse_pieces(engine: Forwards, cache: Cache, what: str) -> None:
    """Refuse to read in pieces with a model that loses its state between them.

    Args:
        engine: the model.
        cache: shows whether the model has a state.
        what: it is asked for, and what to do instead.

    Raises:
        UnsupportedModelError: it does.
    """
    if loses_its_state(engine, cache):
        raise UnsupportedModelError(
            f"{type(engine.model).__name__} goes on from its recurrent state with one token at a "
            f"time alone, and would forget what came before; {what}"
        )


def _measured(engine: Forwards) -> bool:
    tokens = sample_tokens(engine.model)[0].tolist()
    model = engine.model
    whole = engine.forward([tokens], SelfExtendCache(model.config)).double()
    cache = SelfExtendCache(model.config)
    engine.forward([tokens[:_FIRST]], cache)
    pieces = engine.forward([tokens[_FIRST:]], cache).double()
    tolerance = _TOLERANCE.get(model.dtype, _LOW_PRECISION_TOLERANCE)
    return not float((pieces - whole).abs().max()) <= tolerance * float(whole.abs().max())
