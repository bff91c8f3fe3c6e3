"""Words without the space before them: their tokens, and where their embeddings begin."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer

from training.grow import grown
from training.model import (
    Decoder,
    ModelShape,
    from_llama,
    load_checkpoint,
    save_checkpoint,
    tied,
    to_llama,
)
from training.tokenizer import SPACE, spaced_words, train_tokenizer, with_words_after_no_space

TEXT = "a heavy saddle, the heavy ladder and the heavy kettle: the saddle of the ladder. "


@pytest.fixture(scope="module")
def before() -> Tokenizer:
    return train_tokenizer([TEXT * 20, "the heavy the the"], 320)


@pytest.fixture(scope="module")
def after(before) -> Tokenizer:
    return with_words_after_no_space(before)


def test_a_word_is_one_token_with_a_space_and_without(before, after):
    words = [token[1:] for token in before.get_vocab() if token.startswith(SPACE) and token[3:]]
    assert "heavy" in words
    assert "heavy" not in before.get_vocab()
    for word in words:
        assert after.encode(f'"{word}', add_special_tokens=False).tokens == ['"', word]
        assert after.encode(f" {word}").ids == before.encode(f" {word}").ids


def test_old_tokens_stay_and_texts_come_back(before, after):
    old, new = before.get_vocab(), after.get_vocab()
    assert len(new) > len(old)
    assert sorted(new.values()) == list(range(len(new)))
    assert all(new[token] == place for token, place in old.items())
    text = '{"x": "heavy saddle"}\nladder (kettle) unheavy é 12'
    assert after.decode(after.encode(text).ids) == text
    assert with_words_after_no_space(after).get_vocab() == new


@torch.no_grad()
def test_a_grown_model_is_the_same_for_old_tokens_and_begins_new_ones_with_their_words(
    before, after
):
    torch.manual_seed(0)
    old, new = before.get_vocab(), after.get_vocab()
    shape = ModelShape(vocabulary=len(old), hidden=32, layers=2, heads=2, head_size=16)
    model = Decoder(shape).eval()
    larger = grown(model, old, new)
    ids = torch.tensor([before.encode(" the heavy saddle").ids])
    torch.testing.assert_close(larger(ids)[..., : len(old)], model(ids), rtol=0, atol=0)
    rows = larger.table()
    spaced, bare = (new[x] for x in (f"{SPACE}heavy", "heavy"))
    both = [x for x in old if SPACE + x in old]
    expected = torch.stack([rows[old[x]] - rows[old[SPACE + x]] for x in both]).mean(0)
    torch.testing.assert_close(rows[bare] - rows[spaced], expected)
    torch.testing.assert_close(larger.unspaced, expected)


def test_another_tokenizer_is_refused(before, after):
    shape = ModelShape(vocabulary=len(before.get_vocab()), hidden=32, layers=1, heads=2)
    model = Decoder(shape)
    other = json.loads(after.to_str())["model"]["vocab"]
    first, second = other["a"], other["b"]
    other |= {"a": second, "b": first}
    with pytest.raises(ValueError, match="other ids"):
        grown(model, before.get_vocab(), other)
    with pytest.raises(ValueError, match="nothing to begin 'xyz'"):
        grown(model, before.get_vocab(), {**before.get_vocab(), "xyz": len(before.get_vocab())})


@torch.no_grad()
def test_a_model_that_is_stored_and_tied_again_is_the_same(before, after, tmp_path):
    torch.manual_seed(1)
    old, new = before.get_vocab(), after.get_vocab()
    shape = ModelShape(vocabulary=len(old), hidden=32, layers=1, heads=2, head_size=16)
    larger = grown(Decoder(shape).eval(), old, new)
    ids = torch.tensor([after.encode('"heavy saddle" or "ladder"').ids])
    assert ids.max() >= len(old)
    stored = from_llama(to_llama(larger, 0, 1, 2)).eval()
    assert not stored.shape.spaced
    torch.testing.assert_close(stored(ids), larger(ids))
    again = tied(stored, spaced_words(new, len(old))).eval()
    assert again.embedding.weight.shape == (len(old), 32)
    torch.testing.assert_close(again(ids), larger(ids))
    save_checkpoint(tmp_path / "checkpoint.pt", again)
    loaded, _ = load_checkpoint(tmp_path / "checkpoint.pt")
    assert loaded.shape == again.shape
    assert torch.equal(loaded(ids), again(ids))
