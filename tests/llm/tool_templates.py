"""Chat templates in the manner of well-known families, on byte-level tokenizers."""

from __future__ import annotations

from typing import Any

from transformers import LlamaForCausalLM

from tests.tiny import byte_tokenizer, tiny_llama

# Qwen 2.5 and 3, Hermes: calls between tags, which are added tokens but no special ones there.
HERMES = """\
{%- if tools %}<|im_start|>system
{{ messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' -}}
# Tools
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools><|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% elif message.role == 'assistant' %}<|im_start|>assistant
{{ message.content }}
{%- for call in message.tool_calls or [] %}
{%- if not loop.first or message.content %}{{ '\\n' }}{% endif -%}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% elif message.role == 'user' %}<|im_start|>user
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if thinking %}<think>
{% endif %}{% endif %}"""

# Llama 3: a bare JSON object, one call a turn.
LLAMA = """\
{{ bos_token }}
{%- if tools %}<|start|>system

Respond with {"name": function name, "parameters": dictionary}.
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|eot|>
{%- endif %}
{%- for message in messages %}
{%- if message.tool_calls %}
{%- if message.tool_calls | length > 1 %}{{ raise_exception('only single tool-calls') }}{% endif %}
{%- set call = message.tool_calls[0].function %}<|start|>assistant

{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot|>
{%- else %}<|start|>{{ 'ipython' if message.role == 'tool' else message.role }}

{{ message.content | trim }}<|eot|>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant

{% endif %}"""

# Mistral: a special token, then a list with ids of nine characters.
MISTRAL = """\
{{ bos_token }}
{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for message in messages %}
{%- if message.role in ('user', 'system') %}[INST]{{ message.content }}[/INST]
{%- elif message.role == 'tool' %}
{%- if message.tool_call_id | length != 9 %}{{ raise_exception('ids of length 9') }}{% endif -%}
[TOOL_RESULTS]{{ {'content': message.content, 'call_id': message.tool_call_id} | tojson }}
{%- elif message.tool_calls %}[TOOL_CALLS][
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids of length 9') }}{% endif %}
{%- set made = call.function | tojson %}
{{- made[:-1] }}, "id": "{{ call.id }}"}{{ ', ' if not loop.last }}
{%- endfor %}]{{ eos_token }}
{%- else %}{{ message.content }}{{ eos_token }}{% endif %}
{%- endfor %}"""

# Later ones of Mistral: a token before each name and one before its arguments.
MISTRAL_ARGS = (
    MISTRAL[: MISTRAL.index("{%- elif message.tool_calls %}")]
    + """\
{%- elif message.tool_calls %}
{%- for call in message.tool_calls -%}
[TOOL_CALLS]{{ call.function.name }}[CALL_ID]{{ call.id }}[ARGS]{{
    call.function.arguments | tojson }}
{%- endfor %}{{ eos_token }}
{%- else %}{{ message.content }}{{ eos_token }}{% endif %}
{%- endfor %}"""
)

# Gemma: knows neither tools nor a system's text, and insists on turns.
GEMMA = """\
{{ bos_token }}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}{% endif %}
{%- if message.role not in ('user', 'assistant') %}{{ raise_exception('no such role') }}{% endif -%}
<|start|>{{ 'model' if message.role == 'assistant' else 'user' }}
{{ message.content | trim }}<|end|>
{% endfor %}
{%- if add_generation_prompt %}<|start|>model
{% endif %}"""

# Shows tools, and writes calls as tags of parameters.
TAGS = """\
{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- for message in messages %}<|start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}<function={{ call.function.name }}>
{%- for name, value in call.function.arguments.items() -%}
<parameter={{ name }}>{{ value }}</parameter>
{%- endfor %}</function>{% endfor %}<|end|>
{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant
{% endif %}"""

# Wants arguments as text, as DeepSeek's.
AS_TEXT = HERMES.replace("call.function.arguments | tojson", "call.function.arguments + ''")

SPECIAL = {
    "HERMES": ["<|im_start|>", "<|im_end|>"],
    "LLAMA": ["<|start|>", "<|eot|>"],
    "MISTRAL": ["[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
                "[TOOL_RESULTS]"],
    "MISTRAL_ARGS": ["[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
                     "[TOOL_CALLS]", "[TOOL_RESULTS]", "[CALL_ID]", "[ARGS]"],
    "GEMMA": ["<|start|>", "<|end|>"],
    "TAGS": ["<|start|>", "<|end|>"],
    "AS_TEXT": ["<|im_start|>", "<|im_end|>"],
}  # fmt: skip
ENDS = {"HERMES": "<|im_end|>", "LLAMA": "<|eot|>", "MISTRAL": "<eos>", "GEMMA": "<|end|>"}
ENDS |= {"TAGS": "<|end|>", "AS_TEXT": "<|im_end|>", "MISTRAL_ARGS": "<eos>"}


def family(name: str) -> Any:
    """The tokenizer of a family; Hermes' tags are added tokens that are not special."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[name]})
    tokenizer.eos_token = ENDS[name]
    if name in ("HERMES", "AS_TEXT"):
        tokenizer.add_tokens(["<tool_call>", "</tool_call>", "<think>", "</think>"])
    tokenizer.chat_template = globals()[name]
    return tokenizer


class Scripted(LlamaForCausalLM):
    """Wants to say a text, whatever it is asked; what a constraint rules out, it says otherwise."""

    def script(self, tokens: list[int], prompt_length: int) -> None:
        self.said, self.prompt_length = tokens, prompt_length

    def forward(self, input_ids: Any = None, past_key_values: Any = None, **more: Any) -> Any:
        output = super().forward(input_ids=input_ids, past_key_values=past_key_values, **more)
        place = past_key_values.get_seq_length() - self.prompt_length
        output.logits.fill_(-10.0)
        output.logits[:, -1, self.said[min(max(place, 0), len(self.said) - 1)]] = 10.0
        return output


def scripted(tokenizer: Any) -> Scripted:
    """A model for one of these tokenizers; its logits are wider than the vocabulary."""
    plain = tiny_llama(window=8192, vocab_size=len(tokenizer) + 13)
    plain.__class__ = Scripted
    plain.generation_config.eos_token_id = tokenizer.eos_token_id
    return plain
