"""The training model: a Llama decoder in plain torch, and its export to transformers' form."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GUIDED_HEADS = (0, 1)
HIDDEN = -1e9  # what hides a token in a bias of the scores
LOOK_BACK = 25.0  # what the biases of ``look_back`` add to a score where it is highest


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
    biases: bool = False  # of query, key, value and output projections
    spaced: tuple[int, ...] = ()  # for each of the last tokens, the one with a space before it


class Layer(nn.Module):
    """One decoder layer: causal attention with rotary positions, then a gated MLP."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        inner = shape.heads * shape.head_size
        self.qkv = nn.Linear(shape.hidden, 3 * inner, bias=shape.biases)
        self.out = nn.Linear(inner, shape.hidden, bias=shape.biases)
        self.gate_up = nn.Linear(shape.hidden, 2 * shape.intermediate, bias=False)
        self.down = nn.Linear(shape.intermediate, shape.hidden, bias=False)
        self.attention_norm = nn.Parameter(torch.ones(shape.hidden))
        self.mlp_norm = nn.Parameter(torch.ones(shape.hidden))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output for ``x`` of [B, T, hidden], and rotated q and k of [B, H, T, D].

        ``bias`` [B, T, T] is added to the scores of each head; without it attention is causal.
        """
        shape = self.shape
        batch, length, hidden = x.shape
        h = F.rms_norm(x, (hidden,), self.attention_norm, shape.norm_eps)
        qkv = self.qkv(h).view(batch, length, 3, shape.heads, shape.head_size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, T, D]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = attention(q, k, v, bias)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        h = F.rms_norm(x, (hidden,), self.mlp_norm, shape.norm_eps)
        gate, up = self.gate_up(h).chunk(2, -1)
        return x + self.down(F.silu(gate) * up), q, k


class Decoder(nn.Module):
    """Token ids to logits, with tied embeddings.

    The last tokens of the vocabulary are words without the space before them: their embeddings are
    those of the words with it, moved by one vector that all of them share. So what is learned of
    one word in quotation marks holds for all.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary - len(shape.spaced), shape.hidden)
        if shape.spaced:
            self.unspaced = nn.Parameter(torch.zeros(shape.hidden))
            self.register_buffer("spaced", torch.tensor(shape.spaced), persistent=False)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * shape.layers) ** 0.5 if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)
        if shape.biases:
            look_back(self.layers[0], (1, 2, 3, 4), width=1)
            for layer in self.layers[1:2]:
                look_back(layer, (2, 5, 8, 12), width=4)
        cos, sin = rotary_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def table(self) -> Tensor:
        """Return the embeddings of all tokens, [vocabulary, hidden]."""
        rows = self.embedding.weight
        return torch.cat([rows, rows[self.spaced] + self.unspaced]) if self.shape.spaced else rows

    def forward(self, ids: Tensor, places: Tensor | None = None) -> Tensor:
        """Return logits [B, T, vocabulary] for ids [B, T], or [N, vocabulary] at some places."""
        length = ids.shape[1]
        table = self.table()
        x = F.embedding(ids, table)
        cos, sin = self.cos[:length], self.sin[:length]
        for layer in self.layers:
            x = layer(x, cos, sin)[0]
        if places is not None:
            x = x.flatten(0, 1)[places]
        x = F.rms_norm(x, (self.shape.hidden,), self.norm, self.shape.norm_eps)
        return F.linear(x, table)

    def weighted_loss(
        self,
        ids: Tensor,
        places: Tensor,
        targets: Tensor,
        weights: Tensor,
        spans: Tensor,
        ends: Tensor,
        branches: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss at some places, the guide's loss, and where the best guess is right.

        ``places`` [N] counts tokens over the whole batch; targets and weights are [N]. ``spans``
        [N, 2] is where in its row each target is stated (start and end; equal where it is not):
        some heads of the middle layers should look there. ``ends`` [M, 4] are rows, places of
        statements' ends, and the first places and sizes of their values: a head of the second layer
        should look at the first token, and one of the third layer at the second. The guide's loss
        is the mean of its heads'. ``branches`` [B, T] says which question of its row a token
        belongs to, 0 for the document before them: each question sees the document and itself, and
        has the positions that come after the document.
        """
        positions, bias = branched(branches)
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        asks = spans[:, 1] > spans[:, 0]
        rows = torch.div(places[asks], ids.shape[1], rounding_mode="floor")
        at = places[asks] % ids.shape[1]
        guides = []
        table = self.table()
        x = F.embedding(ids, table)
        for number, layer in enumerate(self.layers):
            x, q, k = layer(x, cos, sin, bias)
            if number in (1, 2):  # the value's first token, and the second if there is one
                known = ends[ends[:, 3] >= number]
                first = known[:, 2] + number - 1
                values = torch.stack([first, first + 1], 1)
                at_ends = (known[:, 0], known[:, 1], values)
                guides.append(guide_loss(q[:, -1], k[:, -1], bias, *at_ends))
            for head in GUIDED_HEADS if number in self.guided else ():
                guides.append(guide_loss(q[:, head], k[:, head], bias, rows, at, spans[asks]))
        x = x.flatten(0, 1)[places]
        x = F.rms_norm(x, (self.shape.hidden,), self.norm, self.shape.norm_eps)
        logits = F.linear(x, table).float()
        losses = F.cross_entropy(logits, targets, reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        return loss, torch.stack(guides).mean(), logits.detach().argmax(-1) == targets

    @property
    def guided(self) -> range:
        """Return the layers of which some heads are guided."""
        middle = self.shape.layers // 2
        return range(middle - 1, self.shape.layers - 1)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Return attention [B, H, T, D], causal or with a bias of [B, T, T].

    With a bias the products are made one by one: for rows of a few hundred tokens on a CPU, the
    gradient takes half the time of that of torch's fused attention.
    """
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    middle = q.shape[2] // 2  # no query before it sees a key after it
    bias = bias[:, None].to(q.dtype)
    with torch.autocast("cpu", enabled=False):
        q = q * q.shape[-1] ** -0.5
        first = q[:, :, :middle] @ k[:, :, :middle].mT + bias[:, :, :middle, :middle]
        second = q[:, :, middle:] @ k.mT + bias[:, :, middle:]
        return torch.cat([first.softmax(-1) @ v[:, :, :middle], second.softmax(-1) @ v], 2)


def branched(branches: Tensor) -> tuple[Tensor, Tensor]:
    """Return positions [B, T], and a bias [B, T, T] of 0 where a token sees another, for which
    question each token of a row belongs to (0: the document, which comes first)."""
    places = torch.arange(branches.shape[1])
    begins = branches != branches.roll(1, 1)
    begins[:, 0] = True
    start = torch.where(begins, places, 0).cummax(1).values
    document = (branches == 0).sum(1, keepdim=True)
    positions = torch.where(branches == 0, places, document + places - start)
    asker, other = branches[:, :, None], branches[:, None, :]
    seen = (places <= places[:, None]) & ((other == 0) | (other == asker))
    return positions, torch.zeros(()).where(seen, HIDDEN)


def guide_loss(
    q: Tensor, k: Tensor, bias: Tensor, rows: Tensor, at: Tensor, spans: Tensor
) -> Tensor:
    """Return the mean of -log(attention on the span), a scalar.

    ``q`` and ``k`` [B, T, D] are all queries and keys of the head, and ``bias`` [B, T, T] hides
    keys; ``rows`` [M] and ``at`` [M] say where each query that asks is, ``spans`` [M, 2] what it
    should look at.
    """
    if not len(rows):
        return q.sum() * 0.0
    scores = (q @ k.mT)[rows, at].float() / q.shape[-1] ** 0.5 + bias[rows, at]  # [M, T]
    index = torch.arange(k.shape[1])
    inside = (index >= spans[:, :1]) & (index < spans[:, 1:])
    wanted = scores.masked_fill(~inside, float("-inf")).logsumexp(-1)
    return (scores.logsumexp(-1) - wanted).mean()


@torch.no_grad()
def look_back(layer: Layer, distances: Sequence[int], width: float) -> None:
    """Start the heads of a layer on tokens some distance before, by biases of query and key.

    A rotated pair of frequency f that is the same in all queries and keys, but turned by f d in
    the keys, contributes most at distance d. Only frequencies up to 1 / ``width`` take part, so
    that the attention is spread over about ``width`` tokens.
    """
    shape = layer.shape
    size = shape.head_size
    frequencies = shape.rope_theta ** (-torch.arange(0, size, 2).float() / size)
    part = (frequencies <= 1 / width) & (frequencies > 0.1 / width)
    q, k, _ = layer.qkv.bias.view(3, shape.heads, size)
    for head, distance in enumerate(distances[: shape.heads]):
        amplitude = part * (LOOK_BACK / part.sum() * size**0.5) ** 0.5
        turned = frequencies * distance
        q[head] = torch.cat([amplitude, torch.zeros_like(amplitude)])
        k[head] = torch.cat([amplitude * turned.cos(), amplitude * turned.sin()])


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
        attention_bias=shape.biases,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    llama = LlamaForCausalLM(config)
    state = {
        "model.embed_tokens.weight": model.table(),
        "model.norm.weight": model.norm,
        "lm_head.weight": model.table(),
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
        if shape.biases:
            biases = (*layer.qkv.bias.chunk(3), layer.out.bias)
            names = (f"{prefix}self_attn.{letter}_proj.bias" for letter in "qkvo")
            state |= dict(zip(names, biases, strict=True))
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
            biases=config.attention_bias,
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
            if config.attention_bias:
                parts = (attention.q_proj, attention.k_proj, attention.v_proj)
                mine.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
                mine.out.bias.copy_(attention.o_proj.bias)
            mine.gate_up.weight.copy_(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
            mine.down.weight.copy_(mlp.down_proj.weight)
            mine.attention_norm.copy_(theirs.input_layernorm.weight)
            mine.mlp_norm.copy_(theirs.post_attention_layernorm.weight)
    return model


@torch.no_grad()
def tied(model: Decoder, spaced: tuple[int, ...]) -> Decoder:
    """Return the model with its last tokens tied to those with a space before them.

    ``spaced`` has the latter. The vector between them is the mean of the differences.
    """
    if not spaced or model.shape.spaced == spaced:
        return model
    rows = model.table()
    kept = rows[: -len(spaced)]
    moved = (rows[-len(spaced) :] - kept[list(spaced)]).mean(0)
    made = Decoder(replace(model.shape, spaced=spaced))
    made.load_state_dict({**model.state_dict(), "embedding.weight": kept, "unspaced": moved})
    return made


def save_checkpoint(path: Path, model: Decoder, **state: object) -> None:
    """Write weights and training state in one step, so that a kill leaves the older file."""
    part = path.with_suffix(".part")
    torch.save({"shape": asdict(model.shape), "model": model.state_dict(), **state}, part)
    part.replace(path)


def shape_of(stored: dict[str, Any]) -> ModelShape:
    """Return the sizes that a file names; JSON and older files have no tuple."""
    return ModelShape(**{**stored, "spaced": tuple(stored.get("spaced", ()))})


def load_checkpoint(path: Path) -> tuple[Decoder, dict]:
    """Return the model of a checkpoint and everything else in it."""
    state = torch.load(path, weights_only=True)
    model = Decoder(shape_of(state.pop("shape")))
    model.load_state_dict(state.pop("model"))
    return model, state
