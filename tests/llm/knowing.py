"""A model that knows the answers to the questions of tests, LangChain's own among them."""

from __future__ import annotations

import json
from typing import Any
from weakref import WeakKeyDictionary

from transformers import LlamaForCausalLM

from selfextend_rag import LongContextLLM
from tests.llm.tool_templates import family
from tests.tiny import tiny_llama


def call(name: str, **arguments: Any) -> str:
    """Return a call as the template of ``HERMES`` writes it."""
    written = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{written}\n</tool_call>"


JOKE = json.dumps({"setup": "Why do cats purr?", "punchline": "They like it."})
# What the last message says, and the answer; the first that fits counts.
KNOWN = (
    ("magic_function(3)", call("magic_function", input=3)),
    ("magic_function_no_args", call("magic_function_no_args")),
    ("Pirate", call("greeting_generator", answer_style="pirate")),
    ("Hello!", call("magic_function", input=1)),
    ("你好啊集团", call("unicode_customer", customer_name="你好啊集团", description="技术")),
    ("こんにちは株式会社", call("unicode_customer", customer_name="こんにちは株式会社",
                       description="日本")),
    ("weather in San Francisco", call("get_weather", location="San Francisco, CA")),
    ("joke about cats", JOKE),
    ("Ask for the pass key", call("keys", input="What is the pass key?")),
    ("Who approves travel?", json.dumps([{"choice": 2, "reason": "It knows travel."}])),
    ("Weigh the cat and the dog", call("weigh", what="cat") + "\n" + call("weigh", what="dog")),
)  # fmt: skip
OTHERWISE = "That is all there is to say."


class Knowing(LlamaForCausalLM):
    """Wants to say what it knows; where a constraint rules that out, it says otherwise."""

    def of(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.answers: WeakKeyDictionary[Any, tuple[int, list[int]]] = WeakKeyDictionary()

    def forward(self, input_ids: Any = None, past_key_values: Any = None, **more: Any) -> Any:
        first = past_key_values.get_seq_length() == 0
        output = super().forward(input_ids=input_ids, past_key_values=past_key_values, **more)
        if first:  # prompts come in one chunk
            self.answers[past_key_values] = (input_ids.shape[1], self._said(input_ids[0].tolist()))
        prompt_length, said = self.answers[past_key_values]
        place = past_key_values.get_seq_length() - prompt_length
        output.logits.fill_(-10.0)
        output.logits[:, -1, said[min(place, len(said) - 1)]] = 10.0
        return output

    def _said(self, prompt: list[int]) -> list[int]:
        asked = self.tokenizer.decode(prompt).rpartition("<|im_start|>user\n")[2]
        text = next((answer for question, answer in KNOWN if question in asked), OTHERWISE)
        return [
            *self.tokenizer.encode(text, add_special_tokens=False),
            self.tokenizer.eos_token_id,
        ]


def knowing_llm() -> LongContextLLM:
    """Return the model with a chat template that writes tools and calls, one token a byte."""
    tokenizer = family("HERMES")
    model = tiny_llama(window=8192, vocab_size=len(tokenizer))
    model.__class__ = Knowing
    model.of(tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return LongContextLLM(model, tokenizer, chunk_size=8192, prefix_cache_bytes=0)
