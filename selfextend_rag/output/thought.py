"""A thought that the prompt has begun for the model, and that has to end before anything else."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

BEGIN, END = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Thought:
    """How a thought is ended.

    Args:
        end_token: the token of `END`, where the vocabulary has one that is no text to a grammar.
        free_tokens: other control tokens, which may come in a thought.
    """

    end_token: int | None
    free_tokens: Collection[int] = ()

    @property
    def rules(self) -> list[str]:
        """Return the rules of ``thought``: any text, its end, and a little white space."""
        others = ",".join(map(str, sorted(self.free_tokens)))
        before = f"(THOUGHT <[{others}]>)* " if others else ""
        space = r"THOUGHT_SPACE: /[ \n]{0,2}/"
        text = r"THOUGHT: /(.|\n)*/"
        if self.end_token is not None:
            rule = f"thought: {before}THOUGHT <[{self.end_token}]> THOUGHT_SPACE"
            return [rule, text, space]
        ended = f"thought_end[lazy]: THOUGHT {json.dumps(END)}"
        return [f"thought: {before}thought_end THOUGHT_SPACE", ended, text, space]
