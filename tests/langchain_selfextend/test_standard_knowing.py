"""LangChain's suite for chat models on one that knows the answers: nothing is expected to fail.

What the bundled model fails in `test_standard` is thus for lack of judgement alone, and a model
with a chat template that writes tools and calls passes too.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langchain_selfextend import ChatSelfExtend
from selfextend_rag import LongContextLLM
from selfextend_rag.bundled import FOLDER
from tests.llm.knowing import JOKE, knowing_llm


@pytest.fixture(scope="module")
def llm() -> LongContextLLM:
    return knowing_llm()


# the suite asks for the fixture also in tests that do not time anything
@pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")
class TestChatModelIntegration(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _its_model(self, llm: LongContextLLM) -> None:
        self.llm = llm

    @pytest.fixture
    def model(self, request: Any, llm: LongContextLLM) -> BaseChatModel:
        return ChatSelfExtend(llm=llm, max_tokens=200, **getattr(request, "param", {}))

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatSelfExtend

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"llm": self.llm, "max_tokens": 200}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def enable_vcr_tests(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return str(FOLDER)


def test_structured_answers_are_what_the_model_wants_to_say(llm):
    model = ChatSelfExtend(llm=llm, max_tokens=200)
    message = model.invoke("Tell me a joke about cats.", response_format={"type": "json_object"})
    assert message.content == JOKE
