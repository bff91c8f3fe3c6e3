"""Models on servers of OpenAI's API, asked as those in this process are."""

from selfextend_rag.llm.remote.llm import RemoteLLM, RemoteReading

__all__ = ["RemoteLLM", "RemoteReading"]
