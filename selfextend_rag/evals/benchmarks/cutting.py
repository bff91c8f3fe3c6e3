"""What benchmarks do with prompts that are too long, by their own rules."""

from __future__ import annotations

from dataclasses import replace

from selfextend_rag.evals.benchmarks.items import CutRule, Item, Tokens

# The lengths that LongBench cuts prompts to, by the model's window.
OFFICIAL_LENGTHS = {4096: 3500, 8192: 7500, 16384: 15500, 32768: 31500}
_WORDS = 250  # that L-Eval drops at a time


def official_length(rule: CutRule, window: int, max_new_tokens: int) -> int:
    """Return the tokens that a benchmark's own program cuts to.

    ``middle`` is LongBench's published figure for the whole prompt, or what another window leaves.
    ``tail`` and ``head`` are L-Eval's for the document alone: a window of 4k counts as 4,000
    tokens, less the answer. ``skip`` is the window: MDQA's program leaves out longer prompts. It is
    not positive where the longest answer alone takes the window.

    Args:
        rule: the benchmark's.
        window: P.
        max_new_tokens: of the answer.
    """
    if rule == "skip":
        return window
    if rule in ("tail", "head"):
        return 1000 * window // 1024 - max_new_tokens
    return OFFICIAL_LENGTHS.get(window, window - max_new_tokens - window // 32)


def cut(item: Item, rule: CutRule, length: int, tokens: Tokens) -> Item | None:
    """Return an item cut to a length by a benchmark's rule, or as it is where it fits.

    Args:
        item: what may be too long.
        rule: the benchmark's own.
        length: tokens that the prompt may have, or the document where words of it are dropped.
        tokens: of the model.

    Returns:
        None where the benchmark leaves the item out, or where nothing of its document is left.
    """
    if rule in ("tail", "head"):
        return _with_text(_by_words(item, length, tokens, keep_end=rule == "head"))
    longest = max(item.questions, key=lambda question: len(question.text))
    whole = item.before + item.document + longest.text + longest.begin
    ids = tokens.encode(whole)
    if len(ids) <= length:
        return item
    if rule == "skip" or length < 2:
        return None
    return _with_text(_in_the_middle(item, ids, length, tokens))


def _with_text(item: Item) -> Item | None:
    return item if item.document.strip() else None


def _in_the_middle(item: Item, ids: list[int], length: int, tokens: Tokens) -> Item:
    """Keep the first and last half of the whole prompt's tokens, frame and question included.

    The rule is for prompts of one question. Where the question alone is longer than half, it is
    what is cut, as in the official program.
    """
    (question,) = item.questions
    half = length // 2
    begin, end = tokens.decode(ids[:half]), tokens.decode(ids[-half:])
    asked = question.text + question.begin
    if end.endswith(asked):
        end = end[: len(end) - len(asked)]
        return replace(item, before="", document=begin + end)
    rest = replace(question, text=end, begin="")
    return replace(item, before="", document=begin, questions=(rest,))


def _by_words(item: Item, length: int, tokens: Tokens, *, keep_end: bool) -> Item:
    """Drop words of the document, 250 more each time, until it has no more tokens than that."""
    if length < 1:
        return replace(item, document="")
    document, dropped = item.document, 0
    while len(tokens.encode(document)) > length:
        words, keep = document.split(" "), length - dropped
        if keep <= 0:  # words of very many tokens, as of a script without spaces
            ids = tokens.encode(document)
            document = tokens.decode(ids[-length:] if keep_end else ids[:length])
            break
        document = " ".join(words[-keep:] if keep_end else words[:keep])
        dropped += _WORDS
    return item if document == item.document else replace(item, document=document)
