"""The completion model: text continues where the prompt ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import GenerationChunk, LLMResult

from langchain_selfextend.messages import response_metadata, usage_metadata
from langchain_selfextend.settings import Options, SelfExtendSettings, overflow_of_the_framework
from selfextend_rag import Answer


class SelfExtendLLM(SelfExtendSettings, BaseLLM):
    """A local model that continues a text, its context window stretched to what the text needs.

    Setup and main arguments are those of `ChatSelfExtend`. A model with a chat template is given
    the prompt as a user's message.

    Construct and invoke:
        .. code-block:: python

            from langchain_selfextend import SelfExtendLLM

            llm = SelfExtendLLM(model="bundled", max_tokens=12)
            text = llm.invoke("In the beginning")

    Stream:
        .. code-block:: python

            for part in llm.stream("In the beginning"):
                print(part, end="")
    """

    @property
    def _llm_type(self) -> str:
        return "selfextend-llm"

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        with overflow_of_the_framework():
            stream = self.llm.stream(prompt, **self._call_arguments(stop, kwargs))
        with stream:
            for part in stream:
                chunk = GenerationChunk(text=part)
                if run_manager is not None:
                    run_manager.on_llm_new_token(part, chunk=chunk)
                yield chunk
            answer = self.in_time(stream.answer)
        yield self._last_chunk(answer)

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        with overflow_of_the_framework():
            stream = await self.llm.astream(prompt, **self._call_arguments(stop, kwargs))
        async with stream:
            async for part in stream:
                chunk = GenerationChunk(text=part)
                if run_manager is not None:
                    await run_manager.on_llm_new_token(part, chunk=chunk)
                yield chunk
            answer = self.in_time(await stream.aanswer())
        yield self._last_chunk(answer)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        heard = run_manager if self.streaming else None
        return _result([list(self._stream(text, stop, heard, **kwargs)) for text in prompts])

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        heard = run_manager if self.streaming else None
        return _result(
            [
                [chunk async for chunk in self._astream(text, stop, heard, **kwargs)]
                for text in prompts
            ]
        )

    def _call_arguments(self, stop: list[str] | None, call: Options) -> Options:
        return {**self.call_options(stop, call), "cancelled": self.deadline()}

    def _last_chunk(self, answer: Answer) -> GenerationChunk:
        info = response_metadata(answer, self.model)
        return GenerationChunk(
            text="", generation_info={**info, "usage_metadata": usage_metadata(answer.usage)}
        )


def _result(answers: list[list[GenerationChunk]]) -> LLMResult:
    """Return streamed answers as one result, with the tokens of all of them."""
    wholes = [sum(chunks[1:], chunks[0]) for chunks in answers]
    usages = [(whole.generation_info or {})["usage_metadata"] for whole in wholes]
    kinds = {"input_tokens": "prompt", "output_tokens": "completion", "total_tokens": "total"}
    usage = {f"{kind}_tokens": sum(u[name] for u in usages) for name, kind in kinds.items()}
    return LLMResult(generations=[[whole] for whole in wholes], llm_output={"token_usage": usage})
