"""A token maps back to the characters it came from: nothing lost, nothing twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from selfextend_rag.documents import Document
from selfextend_rag.evidence import TokenRanges
from selfextend_rag.llm import LongContextLLM, PromptBuilder
from selfextend_rag.text.codec import TextCodec
from selfextend_rag.text.prompts import Prompt, joined_documents
from tests.text.test_prompts import LLAMA_3, regex_tokenizer, sentencepiece_tokenizer
from tests.tiny import SPECIAL_TOKENS, byte_tokenizer


def trimming_tokenizer():
    """Merges across characters and white space, and offsets that leave white space out."""
    corpus = ["the cat sat on the mat. the dog", "été à l'école", "日本語日本語", "\n\n\n"] * 4
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "<e>"],
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<e>")


TOKENIZERS = {
    "bytes": byte_tokenizer(),
    "bytes in a chat": byte_tokenizer(chat=True),
    "trimming": trimming_tokenizer(),
    "Llama 3": regex_tokenizer(LLAMA_3),
    "Llama 2": sentencepiece_tokenizer(),
    "bundled": LongContextLLM.bundled().tokenizer,
}
BUILDERS = {name: PromptBuilder(tokenizer) for name, tokenizer in TOKENIZERS.items()}

crumbs = st.sampled_from(
    [
        *SPECIAL_TOKENS,
        "<",
        "the ",
        "\n",
        "\n\n",
        "  ",
        ".",
        "é",
        "日本",
        "🙂",
        "e\u0301",
        "# A",
        "\t",
    ]
) | st.text(max_size=4)
texts = st.lists(crumbs, min_size=1, max_size=12).map("".join).filter(str.strip)
titles = st.sampled_from(["", "A", "A", "B\nC", "Document 2", "é"])
documents = st.lists(
    st.builds(lambda text, title: Document.from_text(text, title=title), texts, titles),
    min_size=1,
    max_size=4,
)


def slices(packed, number):
    """The ranges of one document, in the order of its tokens."""
    ranges = packed.ranges
    found = zip(ranges.document.tolist(), ranges.start.tolist(), ranges.end.tolist(), strict=True)
    return [(start, end) for document, start, end in found if document == number]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(documents=documents)
@settings(max_examples=60, deadline=None)
def test_the_ranges_joined_are_the_documents(name, documents):
    builder = BUILDERS[name]
    packed = builder.documents(documents)
    assert packed.tokens == builder.documents(documents, ranges=False).tokens
    assert len(packed.ranges) == len(packed.tokens)
    for number, document in enumerate(documents):
        place = 0
        if builder.chat and len(documents) == 1:  # its template trims the message
            place = len(document.text) - len(document.text.lstrip())
        for start, end in slices(packed, number):
            assert start == place
            place = end
        assert place == len(document.text.rstrip())


@pytest.mark.parametrize("name", ["bytes", "bundled", "Llama 3", "trimming"])
@given(text=texts, after=st.sampled_from(["", "a", "\n"]))
@settings(max_examples=80, deadline=None)
def test_a_token_ends_after_the_characters_it_begins(name, text, after):
    """Against its bytes: the vocabularies are byte-level, so the tokens' bytes are the text's."""
    codec = BUILDERS[name].codec
    encoded = codec.encoded(text, after=after)
    of_character = {character: byte for byte, character in bytes_to_unicode().items()}
    held = b""
    tokens = codec.tokenizer.convert_ids_to_tokens(encoded.ids)
    for token, end in zip(tokens, encoded.ends, strict=True):
        held += bytes(of_character[character] for character in token)
        begun = len(held.decode("utf-8", "ignore"))
        begun += len(text[:begun].encode()) < len(held)
        assert end == begun or text[min(end, begun) : max(end, begun)].isspace()
    assert held == text.encode()


def test_titles_separators_and_the_template_are_no_document():
    tokenizer = byte_tokenizer(chat=True)
    two = [Document.from_text("Blue.", title="Sky"), Document.from_text("Green. \n", title="Grass")]
    packed = PromptBuilder(tokenizer, instruction="Be brief.").documents(two)
    by_document = {-1: [], 0: [], 1: []}
    for token, document in zip(packed.tokens, packed.ranges.document, strict=True):
        by_document[int(document)].append(token)
    shown = {number: tokenizer.decode(tokens) for number, tokens in by_document.items()}
    assert shown[0] == "Blue."
    assert shown[1] == "Green."
    assert shown[-1] == "<bos><|start|>user\n# Sky\n\n\n\n# Grass\n\n\n\nBe brief."


def test_headings_tell_documents_apart():
    given = [
        ("", "one"),
        ("A", "two"),
        ("A", "three"),
        ("", "four"),
        ("A (2)", "five"),
        ("b\nc", "6"),
    ]
    whole, starts, stops = joined_documents(
        [Document.from_text(text, title=title) for title, text in given]
    )
    headings = [line for line in whole.splitlines() if line.startswith("# ")]
    assert headings == ["# Document 1", "# A", "# A (3)", "# Document 4", "# A (2)", "# b c"]
    found = [whole[start:stop] for start, stop in zip(starts, stops, strict=True)]
    assert found == [text for _, text in given]


def test_a_token_within_a_template_s_own_words_is_told_from_an_equal_document():
    """The template writes the document's text a second time, before it."""
    tokenizer = byte_tokenizer(chat=True)
    tokenizer.chat_template = "Blue {{ messages[0].content }}!"
    packed = PromptBuilder(tokenizer, instruction="").documents([Document.from_text("Blue")])
    assert packed.ranges.document.tolist()[:9] == [-1] * 5 + [0] * 4


def test_a_template_that_changes_the_documents_is_refused():
    """The model read something else, and all that was missing was the evidence."""
    tokenizer = byte_tokenizer(chat=True)
    tokenizer.chat_template = "{{ messages[0].content | replace('sky', 'sea') }}"
    builder = PromptBuilder(tokenizer)
    for ranges in (True, False):
        with pytest.raises(ValueError, match="changes the text of documents; use prompt_form="):
            builder.documents([Document.from_text("The sky.")], ranges=ranges)


@pytest.mark.parametrize("space", ["", "\n", "\n\n", " \n", "  "])
@pytest.mark.parametrize("rest", ["<bos>", "a", "<|start|>user\n"])
@pytest.mark.parametrize("trims", [True, False])
def test_white_space_before_a_document_is_not_taken_for_the_template_s_own(space, rest, trims):
    """The template ends with a line end, and trims the one that the document begins with."""
    tokenizer = byte_tokenizer(chat=True)
    if not trims:
        tokenizer.chat_template = tokenizer.chat_template.replace(" | trim", "")
    packed = PromptBuilder(tokenizer).documents([Document.from_text(space + rest)])
    found = slices(packed, 0)
    assert found[0][0] == (len(space) if trims else 0)
    assert found[-1][1] == len((space + rest).rstrip())
    assert [end for _, end in found[:-1]] == [start for start, _ in found[1:]]


def test_ranges_follow_a_template_s_date():
    tokenizer = byte_tokenizer(chat=True)
    document = [Document.from_text("The sky.")]
    tokenizer.chat_template = "9 May: {{ messages[0].content }}"
    then = PromptBuilder(tokenizer).documents(document)
    tokenizer.chat_template = "10 May: {{ messages[0].content }}"
    now = PromptBuilder(tokenizer).documents(document)
    moved = now.ranges.within_other(now.tokens, then.tokens)
    assert slices(Prompt(then.tokens, moved), 0) == slices(then, 0)
    assert len(moved) == len(then.tokens)
    assert now.ranges.within_other(now.tokens, then.tokens[:-1]) is None


class _Slow:
    """The interface of a tokenizer without offsets, on the bytes of a fast one."""

    is_fast = False

    def __init__(self, inner, wrong=False):
        self._inner, self._wrong = inner, wrong

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def __call__(self, text, **options):
        assert not options.pop("return_offsets_mapping")
        return self._inner(text, **options)

    def decode(self, ids, **options):
        text = self._inner.decode(ids, **options)
        return text.replace("e", "E") if self._wrong else text


@given(text=texts.filter(lambda text: "\ufffd" not in text))
@settings(max_examples=60, deadline=None)
def test_a_slow_tokenizer_s_ranges_are_found_by_decoding(text):
    codec = TextCodec(_Slow(byte_tokenizer()))
    encoded = codec.encoded(text)
    assert encoded.ids == TextCodec(byte_tokenizer()).text(text)
    assert len(encoded.ends) == len(encoded.ids)
    whole = [len(text[:i].encode()) for i in range(1, len(text) + 1)]
    # A character belongs to the token that completes it; special tokens' texts are broken up.
    assert encoded.ends == [sum(end <= n for end in whole) for n in range(1, len(encoded.ids) + 1)]


def test_a_slow_tokenizer_that_does_not_give_the_text_back_gives_no_ranges():
    codec = TextCodec(_Slow(byte_tokenizer(), wrong=True))
    assert codec.encoded("ab").ends == [1, 2]
    assert codec.encoded("eb").ends is None
    builder = PromptBuilder(_Slow(byte_tokenizer(), wrong=True))
    assert builder.documents([Document.from_text("see")]).ranges is None


def test_a_token_over_two_documents_gives_no_ranges():
    assert TokenRanges.within([3, 9], [0, 5], [0, 5], [4, 9]) is None
    assert TokenRanges.within([3, 5, 9], [0, 5], [0, 5], [4, 9]).document.tolist() == [0, 0, 1]


def test_an_added_token_is_one_range():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("Babel")])
    packed = PromptBuilder(tokenizer).documents([Document.from_text("a Babel!")])
    assert slices(packed, 0) == [(0, 1), (1, 2), (2, 7), (7, 8)]
