"""N-gram speculation with the plugin; the last file here, on purpose. Needs vLLM.

It imports numba, and vLLM 0.32 can start no further engine in a process that holds numba's llvmlite
("'_lib_fn_wrapper' object has no attribute 'get'").
"""

from __future__ import annotations

from selfextend_rag import SelfExtend
from tests.vllm_selfextend.engines import answers, check, engine, prompt, save_llama


def test_proposed_tokens_change_nothing(tmp_path):
    """Several queries of a sequence at once, some of them thrown away."""
    model, settings = save_llama(tmp_path), SelfExtend(8, 61)
    option = {"group_size": 8, "neighbor_window": 61}
    speculation = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}
    asked = prompt(40) * 12
    with engine(tmp_path, selfextend=option, speculative_config=speculation) as llm:
        check(model, settings, asked, answers(llm, [asked])[0])
