"""What a server says of itself: the model, its window, its tokenizer, and what it can be sent."""

from __future__ import annotations

import os
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from selfextend_rag.bundled import FOLDER
from selfextend_rag.bundled import NAME as BUNDLED
from selfextend_rag.errors import (
    ContextBudgetExceeded,
    ModelLoadError,
    ModelNotServed,
    PromptMismatch,
    ServerError,
)
from selfextend_rag.llm.loading.sources import load_tokenizer
from selfextend_rag.llm.remote.http import HttpClient, JsonObject
from selfextend_rag.text.codec import TextCodec

# Words, digits, line ends, accents, signs of several bytes and spaces: what vocabularies differ in.
_SAMPLE = (
    "Who pays 48213 francs?\n\nThe dean (née Müller) said:\t“no more than 12,5 %” — 🙂 日本語.\n"
    "    def f(x): return x != 0  # indented\r\nEnd"
)


@dataclass(frozen=True, slots=True)
class Served:
    """A model on a server.

    Args:
        client: sends requests to it.
        model: its name there.
        window: tokens that prompt and answer may have together.
        pretraining_window: what the model was trained for, if the server says so.
        tokens_of_sample: how the server tokenizes a sample; None if it does not say. A server that
            does takes prompts as tokens, too.
        guards: text that reads like a control token stays text there.
        home: what the server loaded the model from, if it says so.
    """

    client: HttpClient
    model: str
    window: int
    pretraining_window: int | None
    tokens_of_sample: tuple[int, ...] | None
    guards: bool
    home: str | None

    @property
    def tokenizes(self) -> bool:
        """Return whether the server says how it tokenizes."""
        return self.tokens_of_sample is not None

    def tokenized(self, **what: object) -> list[int]:
        """Return the tokens of a ``prompt`` or of ``messages``, by the server.

        Raises:
            ServerError: it does not tokenize that, such as messages without a chat template.
        """
        return _tokenized(self.client, self.model, what)


def look_up(client: HttpClient, model: str | None, window: int | None) -> Served:
    """Return what a server says of a model.

    Args:
        client: of the server.
        model: its name there; None for the only one.
        window: tokens that it takes; by default as it says.

    Raises:
        ModelNotServed: there is no such model, or several and none was named.
        ServerError: it can't be asked, or does not state its window and that was not given.
    """
    url = client.connection.url
    entry = _entry(client.json("GET", f"{url}/models"), model, url)
    name, stated = str(entry["id"]), entry.get("max_model_len")
    if window is None:
        if not isinstance(stated, int):
            raise ServerError(
                f"{url} does not say how many tokens {name!r} takes (max_model_len of /models); "
                "give window="
            )
        window = stated
    elif isinstance(stated, int) and window > stated:
        raise ServerError(f"window must be at most the {stated} that {url} states, got {window}")
    trained, root = entry.get("pretraining_window"), entry.get("root")
    return Served(
        client=client,
        model=name,
        window=window,
        pretraining_window=trained if isinstance(trained, int) and trained <= window else None,
        tokens_of_sample=_tokens_of_sample(client, name),
        guards=entry.get("owned_by") == "selfextend-rag",
        home=root if isinstance(root, str) and root else None,
    )


def _entry(listed: JsonObject, model: str | None, url: str) -> JsonObject:
    data = listed.get("data")
    entries = (
        [x for x in data if isinstance(x, dict) and "id" in x] if isinstance(data, list) else []
    )
    names = [str(entry["id"]) for entry in entries]
    if model is None and len(entries) == 1:
        return entries[0]
    if model not in names:
        asked = "several models; name one" if model is None else f"no model {model!r}"
        there = ", ".join(map(repr, names)) or "none"
        raise ModelNotServed(f"{url} has {asked}; there are {there}")
    return entries[names.index(model)]


def _tokens_of_sample(client: HttpClient, model: str) -> tuple[int, ...] | None:
    try:
        return tuple(_tokenized(client, model, {"prompt": _SAMPLE}))
    except (ServerError, ContextBudgetExceeded) as error:
        if getattr(error, "status", None) in (404, 405) or not isinstance(error, ServerError):
            return None
        if error.status is None:  # it has gone, or is something else
            raise
        return None  # another server's endpoint of that name, which takes something else


def _tokenized(client: HttpClient, model: str, what: JsonObject) -> list[int]:
    url = f"{client.connection.root}/tokenize"
    body: JsonObject = {"model": model, "add_special_tokens": False, **what}
    found = client.json("POST", url, body).get("tokens")
    if not isinstance(found, list) or not all(isinstance(token, int) for token in found):
        raise ServerError(f"{url} answers without token ids", status=200)
    return found


def tokenizer_of(
    served: Served, given: PreTrainedTokenizerBase | str | os.PathLike[str] | None
) -> PreTrainedTokenizerBase | None:
    """Return the model's tokenizer in this process; None where the server's has to do.

    Args:
        served: the model.
        given: the tokenizer, or the hub id or folder that has it; by default it is looked for by
            the model's name, and used if it gives the server's tokens.

    Raises:
        ModelLoadError: it can't be loaded, and the server does not tokenize either.
        PromptMismatch: the one given is another than the server's.
    """
    if isinstance(given, PreTrainedTokenizerBase):
        _check(served, given, type(given).__name__)
        return given
    if given is not None:
        tokenizer = load_tokenizer(FOLDER if given == BUNDLED else given)
        _check(served, tokenizer, os.fspath(given))
        return tokenizer
    names = [BUNDLED] if served.model == BUNDLED else [served.model, served.home]
    for name in dict.fromkeys(name for name in names if name):
        try:
            tokenizer = load_tokenizer(FOLDER if name == BUNDLED else name)
            _check(served, tokenizer, name)
            return tokenizer
        except (ModelLoadError, PromptMismatch):
            continue  # a name that means something else here, or nothing
    if served.tokenizes:
        return None
    raise ModelLoadError(
        f"the server does not tokenize, and {served.model!r} names no tokenizer that can be loaded "
        "here; give tokenizer= the model's hub id or folder, or the tokenizer"
    )


def _check(served: Served, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that gives other tokens than the server's."""
    if served.tokens_of_sample is None:
        return
    own = tuple(TextCodec(tokenizer).text(_SAMPLE))
    if own != served.tokens_of_sample:
        raise PromptMismatch(
            f"the tokenizer {name} gives other tokens than the server's for {served.model!r}: "
            f"{len(own)} for a sample, and the server's gives {len(served.tokens_of_sample)}; give "
            "the model's own",
            sent=len(own),
            read=len(served.tokens_of_sample),
        )
