"""The stated bound of encoding a picture against every allocation that towers make."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from selfextend_rag.documents import Document, Picture
from selfextend_rag.errors import DocumentTooLarge, MemoryBudgetExceeded
from selfextend_rag.llm import LongContextLLM
from selfextend_rag.model import picture_embeddings
from selfextend_rag.model.footprint import vision_shape
from selfextend_rag.planning.encoding import encoding_bytes
from selfextend_rag.planning.plan import ContextPlan
from selfextend_rag.text.pictures import PictureProcessor
from tests.planning.test_workspace import peak_bytes
from tests.tiny import tiny_llama
from tests.zoo import vision

FIXED = 1 << 20
SIZES = ((50, 40), (300, 90))
WIDE = {  # the tiny ones' fixed part is most of their bound, so a few are larger
    "llava": {
        "vision_config": {
            "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6,
            "image_size": 64, "patch_size": 4, "num_attention_heads": 4,
        },
        "text_config": {"hidden_size": 256},
    },
    "idefics3": {
        "vision_config": {
            "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6,
            "image_size": 64, "patch_size": 4, "num_attention_heads": 4,
        },
        "scale_factor": 8,
    },
    "internvl": {
        "vision_config": {
            "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6,
            "image_size": [64, 64], "patch_size": [16, 16], "num_attention_heads": 4,
        },
    },
}  # fmt: skip


def peak_and_bound(model, processor, size, itemsize=4):
    pictures = PictureProcessor(processor)
    made = pictures._alone(vision.picture(*size))
    picture_embeddings(model, made)  # what is made once is
    peak = peak_bytes(lambda: picture_embeddings(model, made))
    shape = vision_shape(model.config)
    return peak, encoding_bytes(shape, pictures.work_of_size(*size), itemsize)


@pytest.mark.slow
@pytest.mark.parametrize("name", [x for x in vision.FAMILIES if x != "qwen2_vl"])
def test_no_family_needs_more_than_the_bound_for_a_picture(name):
    model, processor = vision.model(name), vision.processor(name)
    for size in SIZES:
        peak, bound = peak_and_bound(model, processor, size)
        assert 0 < peak <= bound - FIXED


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_bound_is_not_loose_where_towers_are_larger(name, dtype, attention):
    model, processor = vision.model(name, **WIDE[name]).to(dtype), vision.processor(name)
    model.set_attn_implementation(attention)
    if name == "llava":
        processor.patch_size = 4
    peak, bound = peak_and_bound(model, processor, (300, 90), dtype.itemsize)
    assert peak <= bound - FIXED <= 8 * peak


def test_a_model_of_text_has_no_tower():
    assert vision_shape(tiny_llama().config) is None


def opened(**options) -> LongContextLLM:
    model, processor = vision.model("llava"), vision.processor("llava")
    options = {"pretraining_window": 128, "instruction": "", "prefix_cache_bytes": 0, **options}
    return LongContextLLM(model, processor.tokenizer, processor=processor, **options)


def scan(width: int, height: int) -> Document:
    pictures = [Picture(vision.png(width, height, n), width, height) for n in range(3)]
    return Document.from_text("", title="scan", pictures=pictures)


def test_plans_count_the_largest_picture_and_refuse_what_memory_does_not_hold():
    llm = opened()
    small, large = (llm.plan(scan(*size)) for size in ((50, 40), (800, 600)))
    assert 0 < small.picture_bytes < large.picture_bytes
    needed = [plan.memory.needed_bytes - plan.picture_bytes for plan in (small, large)]
    assert needed[0] == needed[1]
    assert "are for looking at a picture" in small.explain()
    text = llm.plan("Text alone.")
    assert text.picture_bytes == 0
    assert "picture" not in text.explain()
    assert llm.plan([scan(50, 40), scan(800, 600)]).picture_bytes == large.picture_bytes
    assert ContextPlan.from_dict(large.to_dict()) == large
    assert "picture_bytes" not in text.to_dict()
    short = opened(memory_limit=(small.memory.needed_bytes + large.memory.needed_bytes) // 2)
    assert short.read(scan(50, 40)).plan.picture_bytes == small.picture_bytes
    for refused in (short.plan, short.read, short.plan_groups):
        with pytest.raises((MemoryBudgetExceeded, DocumentTooLarge)):
            refused(scan(800, 600))
    parts = [{"type": "image", "image": x} for x in scan(800, 600).pictures]
    asked = [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]
    with pytest.raises(MemoryBudgetExceeded):
        short.generate(asked, max_new_tokens=4)
    assert replace(large, picture_bytes=0).total_tokens == large.total_tokens
