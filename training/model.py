"""The training model: a Llama decoder in plain torch, and its export to transformers' form."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the decoder."""

    vocabulary: int = 2048
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    head_size: int = 64
    intermediate: int = 683
    window: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


class Layer(nn.Module):
    """One decoder layer: causal attention with rotary positions, then a gated MLP."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        inner = shape.heads * shape.head_size
        self.qkv = nn.Linear(shape.hidden, 3 * inner, bias=False)
        self.out = nn.Linear(inner, shape.hidden, bias=False)
        self.gate_up = nn.Linear(shape.hidden, 2 * shape.intermediate, bias=False)
        self.down = nn.Linear(shape.intermediate, shape.hidden, bias=False)
        self.attention_norm = nn.Parameter(torch.ones(shape.hidden))
        self.mlp_norm = nn.Parameter(torch.ones(shape.hidden))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the layer's output for ``x`` of [B, T, hidden]."""
        shape = self.shape
        batch, length, hidden = x.shape
        h = F.rms_norm(x, (hidden,), self.attention_norm, shape.norm_eps)
        qkv = self.qkv(h).view(batch, length, 3, shape.heads, shape.head_size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, T, D]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        h = F.rms_norm(x, (hidden,), self.mlp_norm, shape.norm_eps)
        gate, up = self.gate_up(h).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    """Token ids to logits, with tied embeddings."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * shape.layers) ** 0.5 if residual else 0.02)
        cos, sin = rotary_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor, places: Tensor | None = None) -> Tensor:
        """Return logits [B, T, vocabulary] for ids [B, T], or [N, vocabulary] at some places."""
        length = ids.shape[1]
        x = self.embedding(ids)
        cos, sin = self.cos[:length], self.sin[:length]
        for layer in self.layers:
            x = layer(x, cos, sin)
        if places is not None:
            x = x.flatten(0, 1)[places]
        x = F.rms_norm(x, (self.shape.hidden,), self.norm, self.shape.norm_eps)
        return F.linear(x, self.embedding.weight)

    def weighted_loss(
        self, ids: Tensor, places: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted mean loss at some places, and where the best guess is the target.

        ``places`` [N] counts tokens over the whole batch; targets and weights are [N].
        """
        logits = self(ids, places).float()
        losses = F.cross_entropy(logits, targets, reduction="none")
        return (losses * weights).sum() / weights.sum(), logits.detach().argmax(-1) == targets


def rotary_tables(shape: ModelShape) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each [window, D/2]."""
    size = shape.head_size
    frequencies = shape.rope_theta ** (-torch.arange(0, size, 2).float() / size)
    angles = torch.arange(shape.window).float()[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x [.., T, D] with its halves rotated by the angles of each position."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def to_llama(model: Decoder, bos: int, eos: int, pad: int) -> nn.Module:
    """Return the same model as a transformers ``LlamaForCausalLM``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = model.shape
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.window,
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    llama = LlamaForCausalLM(config)
    state = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm,
        "lm_head.weight": model.embedding.weight,
    }
    for number, layer in enumerate(model.layers):
        prefix = f"model.layers.{number}."
        q, k, v = layer.qkv.weight.chunk(3)
        gate, up = layer.gate_up.weight.chunk(2)
        state |= {
            f"{prefix}self_attn.q_proj.weight": q,
            f"{prefix}self_attn.k_proj.weight": k,
            f"{prefix}self_attn.v_proj.weight": v,
            f"{prefix}self_attn.o_proj.weight": layer.out.weight,
            f"{prefix}mlp.gate_proj.weight": gate,
            f"{prefix}mlp.up_proj.weight": up,
            f"{prefix}mlp.down_proj.weight": layer.down.weight,
            f"{prefix}input_layernorm.weight": layer.attention_norm,
            f"{prefix}post_attention_layernorm.weight": layer.mlp_norm,
        }
    llama.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()})
    return llama.eval()


def from_llama(llama: nn.Module) -> Decoder:
    """Return a ``LlamaForCausalLM`` of this form as a training model; undoes ``to_llama``."""
    config = llama.config
    model = Decoder(
        ModelShape(
            vocabulary=config.vocab_size,
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            head_size=config.head_dim,
            intermediate=config.intermediate_size,
            window=config.max_position_embeddings,
            rope_theta=config.rope_parameters["rope_theta"],
            norm_eps=config.rms_norm_eps,
        )
    )
    with torch.no_grad():
        model.embedding.weight.copy_(llama.model.embed_tokens.weight)
        model.norm.copy_(llama.model.norm.weight)
        for mine, theirs in zip(model.layers, llama.model.layers, strict=True):
            attention, mlp = theirs.self_attn, theirs.mlp
            qkv = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
            mine.qkv.weight.copy_(torch.cat(qkv))
            mine.out.weight.copy_(attention.o_proj.weight)
            mine.gate_up.weight.copy_(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
            mine.down.weight.copy_(mlp.down_proj.weight)
            mine.attention_norm.copy_(theirs.input_layernorm.weight)
            mine.mlp_norm.copy_(theirs.post_attention_layernorm.weight)
    return model


def save_checkpoint(path: Path, model: Decoder, **state: object) -> None:
    """Write weights and training state in one step, so that a kill leaves the older file."""
    part = path.with_suffix(".part")
    torch.save({"shape": asdict(model.shape), "model": model.state_dict(), **state}, part)
    part.replace(path)


def load_checkpoint(path: Path) -> tuple[Decoder, dict]:
    """Return the model of a checkpoint and everything else in it."""
    state = torch.load(path, weights_only=True)
    model = Decoder(ModelShape(**state.pop("shape")))
    model.load_state_dict(state.pop("model"))
    return model, state
