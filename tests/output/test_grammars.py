"""Compiled grammars: kept, shared by threads, on vocabularies of several kinds."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from tokenizers import decoders

from selfextend_rag import ConstraintError, SchemaError
from selfextend_rag.engine import Engine, GenerationSettings
from selfextend_rag.output.grammar import Grammars, grammars_of, json_grammar
from tests.text.test_prompts import GPT_2, regex_tokenizer, sentencepiece_tokenizer
from tests.tiny import byte_tokenizer, tiny_llama

TEXT = {"type": "object", "properties": {"größe": {"type": "string", "maxLength": 6}},
        "required": ["größe"], "additionalProperties": False}  # fmt: skip


def llama_2():
    tokenizer = sentencepiece_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    return tokenizer


def gpt_2():
    tokenizer = regex_tokenizer(GPT_2)
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    return tokenizer


@pytest.mark.parametrize("make", [byte_tokenizer, gpt_2, llama_2])
@pytest.mark.parametrize("seed", range(3))
def test_random_weights_write_valid_json_on_every_kind_of_vocabulary(make, seed):
    """The logits are wider than the vocabulary, and there are two end tokens."""
    tokenizer = make()
    ends = (tokenizer.eos_token_id, len(tokenizer) + 3)
    model = tiny_llama(window=512, vocab_size=len(tokenizer) + 50, seed=seed)
    grammar = Grammars(tokenizer).compiled(json_grammar(TEXT), ends)
    settings = GenerationSettings(temperature=1, seed=seed, stop_token_ids=ends, max_new_tokens=100)
    running = Engine(model).generate([5, 6, 7], settings, constraint=grammar.start())
    tokens = list(running)
    assert running.finish_reason == "stop"
    assert max(tokens) < len(tokenizer)
    assert len(json.loads(tokenizer.decode(tokens))["größe"]) <= 6


@pytest.mark.parametrize("end", [1, 300])
def test_any_of_the_end_tokens_ends_what_may_end(end):
    grammar = Grammars(byte_tokenizer()).compiled(json_grammar({"type": "integer"}), (1, 300))
    constraint = grammar.start()
    digit = byte_tokenizer().encode("7", add_special_tokens=False)[0]
    before = constraint.mask(torch.zeros(1, 310))
    assert before[0, end] == -torch.inf
    constraint.accept(digit)
    assert not constraint.finished
    assert constraint.mask(torch.zeros(1, 310))[0, end] == 0
    constraint.accept(end)
    assert constraint.finished


def test_a_token_that_can_not_follow_is_an_error():
    constraint = Grammars(byte_tokenizer()).compiled(json_grammar({"type": "null"}), (1,)).start()
    with pytest.raises(ConstraintError, match="token 100 can't follow"):
        constraint.accept(100)


def test_a_vocabulary_without_the_characters_is_an_error_and_no_endless_loop():
    tokenizer = gpt_2()
    ends = (tokenizer.eos_token_id,)
    constraint = Grammars(tokenizer).compiled(json_grammar({"const": "x"}), ends).start()
    narrow = torch.zeros(1, 1)  # logits for one token, which is no quote
    with pytest.raises(ConstraintError, match="no token of the vocabulary can follow"):
        constraint.mask(narrow)


def test_grammars_are_kept_the_latest_used_first():
    grammars = Grammars(byte_tokenizer(), kept=2)
    one, two, three = (json_grammar({"const": i}) for i in range(3))
    first = grammars.compiled(one, (1,))
    second = grammars.compiled(two, (1,))
    assert grammars.compiled(one, (1,)) is first
    grammars.compiled(three, (1,))
    assert grammars.compiled.cache_info().currsize == 2
    assert grammars.compiled(one, (1,)) is first
    assert grammars.compiled(two, (1,)) is not second


def test_a_tokenizer_has_its_grammars_to_itself():
    one, other = byte_tokenizer(), byte_tokenizer()
    assert grammars_of(one) is grammars_of(one)
    assert grammars_of(one) is not grammars_of(other)


def test_a_grammar_may_be_started_from_several_threads():
    grammar = Grammars(byte_tokenizer()).compiled(json_grammar({"const": "abc"}), (1,))
    tokens = byte_tokenizer().encode('"abc"', add_special_tokens=False)
    done = []

    def run():
        for _ in range(20):
            constraint = grammar.start()
            for token in tokens:
                assert constraint.mask(torch.zeros(1, 300))[0, token] == 0
                constraint.accept(token)
            done.append(constraint.finished)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [True] * 80


def test_tokens_added_later_are_known():
    tokenizer = byte_tokenizer()
    grammars = Grammars(tokenizer)
    source = json_grammar({"const": "hello"})
    grammars.compiled(source, (1,))
    tokenizer.add_tokens(["hello"])
    constraint = grammars.compiled(json_grammar({"enum": ["hello"]}), (1,)).start()
    constraint.accept(tokenizer.encode('"', add_special_tokens=False)[0])
    assert constraint.mask(torch.zeros(1, 300))[0, len(tokenizer) - 1] == 0


def test_a_tokenizer_that_can_not_be_used_is_refused():
    class Slow:
        is_fast = False

        def __len__(self):
            return 10

    with pytest.raises(SchemaError, match="load a fast tokenizer"):
        Grammars(Slow()).compiled("x", (1,))
    with pytest.raises(SchemaError, match="pass stop_token_ids"):
        Grammars(byte_tokenizer()).compiled(json_grammar({}), ())
    with pytest.raises(SchemaError, match=r"are unknown.*byte-fallback"):
        Grammars(sentencepiece_tokenizer()).compiled(json_grammar({}), (1,))
