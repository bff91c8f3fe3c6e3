"""How likely an answer is that was written elsewhere, after a reading."""

import pytest
import torch

from selfextend_rag import ContextBudgetExceeded, LongContextLLM
from selfextend_rag.evals import HuggingFaceModel
from tests.tiny import byte_tokenizer, tiny_llama

TEXT = "The tower is red. " * 3


@pytest.mark.parametrize(("window", "chat"), [(256, False), (64, False), (64, True)])
def test_it_is_what_the_model_says_of_the_undivided_prompt(window, chat):
    """Plain and extended; the reading is as it was, and answers as before."""
    model, tokenizer = tiny_llama(window=window), byte_tokenizer(chat=chat)
    llm = LongContextLLM(model, tokenizer, prefix_cache_bytes=0)
    reading = llm.read(TEXT, max_new_tokens=24, question_reserve=80)
    before = reading.ask("Why?", max_new_tokens=8).text
    found = reading.answer_nll("Why?", "Because.")
    parts = llm.prompts.documents(reading.documents), llm.prompts.question("Why?")
    prompt = [token for part in parts for token in part.tokens]
    wanted = tokenizer("Because." if chat else " Because.", add_special_tokens=False)["input_ids"]
    adapter = HuggingFaceModel(model, reading.plan.settings)
    expected = adapter.token_nll([*prompt, *wanted])[-len(wanted) :]
    assert len(found) == len(wanted)
    assert found == pytest.approx(expected, abs=1e-5)
    assert reading.ask("Why?", max_new_tokens=8).text == before
    assert (reading.plan.settings is None) == (window == 256)


def test_the_models_own_answer_is_the_likeliest_token_by_token():
    model, tokenizer = tiny_llama(window=256), byte_tokenizer()
    llm = LongContextLLM(model, tokenizer, prefix_cache_bytes=0)
    reading = llm.read(TEXT)
    tokens = reading.answer_nll("Why?", "Because of that.")
    first = llm.prompts.question("Why?").tokens
    ids = torch.tensor([[*llm.prompts.documents(reading.documents).tokens, *first]])
    best = torch.log_softmax(model(ids).logits[0, -1].float(), -1).max()
    assert tokens[0] >= -best.item() - 1e-6


def test_what_does_not_fit_or_is_empty_is_refused():
    llm = LongContextLLM(tiny_llama(window=64), byte_tokenizer(), prefix_cache_bytes=0)
    reading = llm.read("Short.", max_new_tokens=8, question_reserve=20)
    with pytest.raises(ContextBudgetExceeded):
        reading.answer_nll("Why?", "x" * 200)
    for question, answer in (("", "a"), ("Why?", " ")):
        with pytest.raises(ValueError, match="empty"):
            reading.answer_nll(question, answer)
    prefix = reading._prefix
    with pytest.raises(ValueError, match="from 1 to all but one, got 1"):
        llm.engine.continuation_nll(prefix, [*prefix.tokens, 5], 1)
