"""The chunks of a streamed answer against decoding all of it at once."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from selfextend_rag.engine import GenerationSettings
from selfextend_rag.output.reader import FREE, AnswerReader, StopTexts
from tests.tiny import byte_tokenizer

BYTES = byte_tokenizer()
ALPHABET = "abé€😀 \n"
texts = st.text(ALPHABET, max_size=12)
stops = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3)


def decode(ids):
    return BYTES.decode(ids, skip_special_tokens=True)


def encode(text):
    return BYTES.encode(text, add_special_tokens=False)


def reader(decode, stops=(), *, framed=False):
    """Of free text in the plain form; a framed one leaves out the white space it begins with."""
    codec = SimpleNamespace(decode=decode)
    prompts = SimpleNamespace(codec=codec, chat=False, skips_space=True, thinks=False)
    return AnswerReader(prompts, GenerationSettings(stop=tuple(stops)), FREE, framed)


def chunks_of(reading, tokens):
    chunks = []
    for token in tokens:
        chunks.append(reading.push(token))
        if reading.stopped:
            break
    return [*chunks, reading.finish()]


def cut(text, stops):
    """The text before the stop text that is complete first, looked for character by character."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(texts, stops)
@example("aab", ["ab"])
@example("aaab", ["aab", "b"])
@example("ab", ["abc", "b"])
@settings(max_examples=300, deadline=None)
def test_the_chunks_joined_are_the_text_cut_at_the_first_stop(text, stops):
    assert "".join(chunks_of(reader(decode, stops), encode(text))) == cut(text, stops)


@given(st.lists(st.integers(0, 260), max_size=14), stops)
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_text_come_out_as_decoding_them_at_once_does(tokens, stops):
    expected = cut(decode(tokens), stops)
    chunks = chunks_of(reader(decode, stops), tokens)
    assert "".join(chunks) == expected


@given(texts)
@settings(deadline=None)
def test_no_chunk_ends_within_a_character(text):
    chunks = chunks_of(reader(decode), encode(text))
    assert not any("\ufffd" in chunk for chunk in chunks)


@given(texts, stops.filter(bool))
@settings(max_examples=200, deadline=None)
def test_nothing_shown_is_ever_taken_back(text, stops):
    """What is shown after any token is a beginning of the final text, whatever comes then."""
    tokens = encode(text)
    reading = reader(decode, stops)
    shown = ""
    for n, token in enumerate(tokens):
        shown += reading.push(token)
        for ending in ("", *stops):
            whole = decode(tokens[: n + 1]).rstrip("\ufffd") + ending
            assert cut(whole, stops).startswith(shown)
        if reading.stopped:
            break


def test_text_is_shown_as_soon_as_it_is_certain():
    reading = reader(decode, ["END"])
    shown = [reading.push(token) for token in encode("aENxé")]
    assert shown == ["a", "", "", "ENx", "", "é"]


@given(st.text(" \n\tab", max_size=8))
@settings(deadline=None)
def test_leading_space_is_left_out_before_stop_texts_are_looked_for(text):
    reading = reader(decode, ["\n"], framed=True)
    assert "".join(chunks_of(reading, encode(text))) == cut(text.lstrip(), ["\n"])


def test_after_a_stop_nothing_comes():
    reading = reader(decode, ["x"])
    assert [reading.push(t) for t in encode("axb")] == ["a", "", ""]
    assert reading.stopped
    assert reading.finish() == ""


WORDS = ["<unk>", "▁the", "▁", "end", "▁end", "s", "<0xC3>", "<0xA9>"]
tokens_of_words = st.lists(st.sampled_from([[1], [2], [3], [4], [5], [6, 7]]), max_size=10)


@given(tokens_of_words)
@settings(max_examples=200, deadline=None)
def test_word_start_spaces_and_byte_tokens_of_sentencechunk_vocabularies(tokens):
    """Such a decoder drops the first space, and makes a character of two byte tokens.

    It also undoes a whole row of byte tokens when the last of them is wrong, which no stream can
    take back; only right ones are drawn here.
    """
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    flat = [token for word in tokens for token in word]
    chunks = chunks_of(reader(backend.decode, ["the"]), flat)
    assert "".join(chunks) == cut(backend.decode(flat), ["the"])
    assert not any("\ufffd" in chunk for chunk in chunks)


@given(texts, stops, st.lists(st.integers(0, 12), max_size=4))
@settings(max_examples=200, deadline=None)
def test_where_the_chunks_are_cut_does_not_matter(text, stops, cuts):
    whole, matcher = [], StopTexts(stops)
    borders = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    for start, end in pairwise(borders):
        if not matcher.found:
            whole.append(matcher.push(text[start:end]))
    assert "".join([*whole, matcher.rest()]) == cut(text, stops)
