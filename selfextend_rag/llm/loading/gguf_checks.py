"""What a GGUF file says against the model that was made of it; nothing may be passed over."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedModel

# the attributes of a configuration that a key is about; the first one that it has counts
_ATTRIBUTES = {
    "context_length": "max_position_embeddings n_positions",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "vocab_size": "vocab_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps norm_eps layer_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps layer_norm_epsilon norm_epsilon norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_count": "num_local_experts num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size intermediate_size",
    "use_parallel_residual": "use_parallel_residual",
}
_HARMLESS = frozenset(("attention.causal",))  # a decoder that is none is refused elsewhere
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_TRAINED = 8192
# how a byte-level tokenizer cuts text before it merges, by what older transformers builds for a
# family; later ones have a table of them
_CUTS = {
    "llama": {"llama-bpe", "llama3", "llama-v3"},
    "qwen2": {"qwen2"},
    "qwen2moe": {"qwen2"},
    "qwen3": {"qwen2"},
    "qwen3moe": {"qwen2"},
}


def field(reader: GGUFReader, key: str) -> Any:
    """Return the value of a key, None where the file has none."""
    found = reader.fields.get(key)
    return None if found is None else found.contents()


def architecture(reader: GGUFReader) -> str:
    """Return the name of the architecture, which is also what its keys begin with."""
    return str(field(reader, "general.architecture"))


def head_size(config: PreTrainedConfig) -> int:
    """Return the size of an attention head."""
    found = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(found)


def _rope(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the rotary parameters of the layers that see all tokens."""
    found: dict[str, dict[str, Any]] = getattr(config, "rope_parameters", None) or {}
    return found.get("full_attention", found)


def rope_of_file(reader: GGUFReader, config: PreTrainedConfig) -> None:
    """Give a configuration the scaled rotary angles that its file states.

    transformers takes none of them over. Llama 3's are a tensor of factors by frequency, which
    must be those of the published rule.

    Raises:
        ValueError: a kind of scaling that is not known here.
    """
    kind = field(reader, f"{architecture(reader)}.rope.scaling.type")
    factor = field(reader, f"{architecture(reader)}.rope.scaling.factor")
    rope = _rope(config)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if long := [name for name in tensors if name.startswith("rope_factors")]:
        raise ValueError(f"its rotary angles are scaled by tensors ({long[0]}), which is not read")
    if "rope_freqs.weight" in tensors:
        found = torch.tensor(tensors["rope_freqs.weight"].data).flatten()
        rope.update(_llama3_scaling(found, float(rope["rope_theta"])))
    elif kind == "linear":
        rope.update(rope_type="linear", factor=float(factor))
    elif kind == "yarn":
        trained = field(reader, f"{architecture(reader)}.rope.scaling.original_context_length")
        rope.update(rope_type="yarn", factor=float(factor))
        rope["original_max_position_embeddings"] = int(trained)
    elif kind not in (None, "none"):
        raise ValueError(f"its rotary angles are scaled by {kind!r}, which is not read")


def _llama3_scaling(found: torch.Tensor, base: float) -> dict[str, Any]:
    """Return Llama 3's rule for factors that follow it, by their largest one."""
    factor = float(found.max())
    rule = {
        "rope_type": "llama3",
        "factor": factor,
        "original_max_position_embeddings": _LLAMA3_TRAINED,
        **_LLAMA3,
    }
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    pairs = torch.arange(len(found), dtype=torch.float64) / len(found)
    turns = _LLAMA3_TRAINED / (2 * torch.pi * base**pairs)  # of each pair within what was trained
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not torch.allclose(found.double(), expected, rtol=1e-4):
        raise ValueError("its rotary angles are scaled by factors that are not Llama 3's")
    return rule


def unread_statements(reader: GGUFReader, config: PreTrainedConfig) -> list[str]:
    """Return what the file states about its model and the configuration does not say, too."""
    prefix = f"{architecture(reader)}."
    problems = []
    for key in reader.fields:
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name in _HARMLESS:
            continue
        stated = field(reader, key)
        if name in _ATTRIBUTES:
            said = _first(config, _ATTRIBUTES[name].split())
        elif name in _CHECKED:
            said = _CHECKED[name](config)
        else:
            problems.append(f"it states {key} = {stated}, which is not read")
            continue
        if not _same(stated, said):
            problems.append(f"it states {key} = {stated}, and what was read of it says {said}")
    return problems


def _rotary_size(config: PreTrainedConfig) -> int:
    parts = (
        _rope(config).get("partial_rotary_factor"),
        getattr(config, "partial_rotary_factor", 1),
    )
    return int(head_size(config) * next(part for part in (*parts, 1.0) if part is not None))


_CHECKED: dict[str, Callable[[PreTrainedConfig], Any]] = {
    "attention.key_length": head_size,
    "attention.value_length": head_size,
    "rope.dimension_count": _rotary_size,
    "rope.freq_base": lambda config: _rope(config).get("rope_theta"),
    "rope.scaling.type": lambda config: _rope(config).get("rope_type", "default"),
    "rope.scaling.factor": lambda config: _rope(config).get("factor"),
    "rope.scaling.original_context_length": lambda config: _rope(config).get(
        "original_max_position_embeddings"
    ),
}


def _first(config: PreTrainedConfig, names: list[str]) -> Any:
    return next((getattr(config, name) for name in names if getattr(config, name, None)), None)


def _same(stated: Any, said: Any) -> bool:
    if isinstance(stated, list):
        return all(_same(each, said) for each in stated)
    if (stated, said) == ("none", "default"):
        return True
    if isinstance(stated, float) and isinstance(said, int | float):
        return abs(stated - said) <= 1e-6 * abs(stated)
    return bool(stated == said)


def _known_cuts(family: str) -> Container[str]:
    with suppress(ImportError):
        from transformers.integrations.gguf.gguf_tokenizer_mapping import (
            GGUF_PRE_TOKENIZER_SPLITS,
        )

        return set(GGUF_PRE_TOKENIZER_SPLITS)
    return _CUTS.get(family, set())


def tokens_that_differ(reader: GGUFReader, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return tokens of the file that a tokenizer has not, and other ways of cutting a text."""
    return list(_token_problems(reader, tokenizer))


def _token_problems(reader: GGUFReader, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    kind, cut = field(reader, "tokenizer.ggml.model"), field(reader, "tokenizer.ggml.pre")
    if kind == "gpt2" and cut not in _known_cuts(architecture(reader)):
        yield f"its tokenizer cuts text by {cut!r}, which is not read"
    stated = field(reader, "tokenizer.ggml.tokens") or []
    for number, (token, other) in enumerate(
        zip(stated, tokenizer.convert_ids_to_tokens(list(range(len(stated)))), strict=True)
    ):
        if token != other and (kind != "llama" or token.replace(" ", "\u2581") != other):
            yield f"its token {number} is {token!r}, and the tokenizer has {other!r}"
    for name, end in (("bos", tokenizer.bos_token_id), ("eos", tokenizer.eos_token_id)):
        number = field(reader, f"tokenizer.ggml.{name}_token_id")
        if number is not None and end != number:
            yield f"its {name} token is {number}, and the tokenizer has {end}"
    template = field(reader, "tokenizer.chat_template")
    if template is not None and getattr(tokenizer, "chat_template", None) != template:
        yield "its chat template is not read"


def tensors_left_out(reader: GGUFReader, model: PreTrainedModel) -> list[str]:
    """Return a problem where a model has not as many weights as its file, each counted once."""
    stated = sum(
        int(tensor.n_elements) for tensor in reader.tensors if tensor.name != "rope_freqs.weight"
    )
    held = sum(parameter.numel() for parameter in model.parameters())
    held += sum(
        buffer.numel() for name, buffer in model.named_buffers() if name in model.state_dict()
    )
    return [] if held == stated else [f"it holds {stated} weights, and the model {held}"]
