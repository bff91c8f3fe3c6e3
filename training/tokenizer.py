"""The bundled model's tokenizer: byte-level BPE with single digits.

Words that are one token after a space are one token without it, too. A word that is copied into
JSON, where it follows a quotation mark, is then one token as it was in the text, in place of a
spelling that has to be learned for each word.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 8192
SPECIAL_TOKENS = ("<bos>", "<eos>", "<pad>")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SPACE = "Ġ"  # as the byte-level alphabet writes it


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer: digits are tokens of their own, every text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A $B",
        special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))],
    )
    return tokenizer


def with_words_after_no_space(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer with a token more for each that begins with a space and has none without.

    Each merge after a space is made without it as well, after all others: texts that held none of
    the new tokens have the tokens that they had, and old tokens keep their ids.
    """
    state = json.loads(tokenizer.to_str())
    vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
    for left, right in [tuple(merge) for merge in merges]:
        word = left[1:] + right
        if left.startswith(SPACE) and len(left) > 1 and word not in vocabulary:
            vocabulary[word] = len(vocabulary)
            merges.append([left[1:], right])
    return Tokenizer.from_str(json.dumps(state))


def spaced_words(vocabulary: dict[str, int], before: int = VOCABULARY) -> tuple[int, ...]:
    """Return, for each token from id ``before`` on, the one with a space before it.

    Raises:
        ValueError: there is none, or none of an id below ``before``.
    """
    added = sorted((t for t, place in vocabulary.items() if place >= before), key=vocabulary.get)
    for token in added:
        if vocabulary.get(SPACE + token, before) >= before:
            raise ValueError(f"there is nothing to begin {token!r} with")
    return tuple(vocabulary[SPACE + token] for token in added)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
