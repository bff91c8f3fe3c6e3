"""The vision model that is made of the bundled one: its eyes, and signs found among pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfextend_rag import LongContextLLM
from selfextend_rag.evals.benchmarks import Source, SyntheticOptions, selected_tasks
from selfextend_rag.evals.methods import LoadedModel, MethodOptions, methods_of
from selfextend_rag.evals.suite.rows import RowFile
from selfextend_rag.evals.suite.run import SuiteOptions, run_suite
from training.find_signs import DEPTHS, SHARE, found_by_depth
from training.haystacks import write_haystacks
from training.signs import FIRST, GRID, KEYS, PATCH, Sign, document, haystack
from training.vision import vision_model, words_of


@pytest.fixture(scope="module")
def made():
    return vision_model()


@pytest.fixture(scope="module")
def llm(made):
    model, processor = made
    return LongContextLLM(model, processor.tokenizer, processor=processor)


def test_eyes_that_were_solved_from_other_signs_make_each_patch_the_word_that_it_is(made):
    model, processor = made
    rng, embeddings = np.random.default_rng(99), model.get_input_embeddings().weight
    for key in (*range(len(KEYS)), None, None):
        sign = Sign.drawn(rng, key)
        pixels = torch.from_numpy(sign.pixels(rng)).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            (found,) = model.get_image_features(pixel_values=pixels).pooler_output
        words = [
            processor.tokenizer.encode(word, add_special_tokens=False)[0] for word in words_of(sign)
        ]
        torch.testing.assert_close(found, embeddings[words], atol=1e-3, rtol=1e-3, msg=str(sign))


def test_a_haystack_has_each_sign_that_is_asked_for_once():
    signs, places = haystack(np.random.default_rng(3), 40, DEPTHS, 0.5)
    keys = [sign.key for sign in signs]
    assert places == [2, 6, 10, 14, 18, 22, 26, 30, 34, 38]
    assert all(keys.count(keys[place]) == 1 for place in places)
    assert 10 < sum(key is not None for key in keys) < 35


def test_signs_are_found_beyond_the_window_and_only_with_the_extension(made, llm):
    model, processor = made
    plain = LongContextLLM(model, processor.tokenizer, processor=processor, extension="never")
    right = [sum(found_by_depth(x, 64, 1, seed=5)) for x in (llm, plain)]
    assert right[0] >= 9
    assert right[1] <= 5


def test_a_haystack_in_the_benchmarks_form_is_searched_by_the_suite(tmp_path, made):
    """As ``selfextend-rag eval vhs`` does it; the needle in the first tenths."""
    model, processor = made
    write_haystacks(tmp_path, (50,), 1, seed=2)
    loaded = LoadedModel("toy", model, processor.tokenizer, processor=processor)
    methods = methods_of(["plain", "selfextend"], loaded, MethodOptions())
    tasks, _ = selected_tasks(["vhs"], Source(tmp_path), SyntheticOptions())
    with RowFile(tmp_path / "out") as file:
        results = run_suite(tasks, methods, loaded, file, SuiteOptions(limit=3, answer_tokens=6))
    right = [sum(row.scores["score"] == 100 for row in rows) for rows in results.rows.values()]
    assert right == [0, 3]


def test_the_evidence_is_the_sign_and_where_its_number_is(llm):
    rng = np.random.default_rng(4)
    signs, (place,) = haystack(rng, 30, (0.4,), SHARE)
    answer = llm.read(document(rng, signs), max_new_tokens=6).ask(signs[place].question)
    assert answer.text.strip() == str(signs[place].number)
    found = answer.evidence[0]
    assert found.picture == place
    assert found.location.startswith(f"picture {place + 1}, ")
    row, column = divmod(FIRST, GRID)
    left, top, right, bottom = found.region
    assert left < (column + 2) * PATCH
    assert right > column * PATCH
    assert top < (row + 1) * PATCH
    assert bottom > row * PATCH
