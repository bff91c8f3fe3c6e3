"""A conversation over a handbook, kept by LangGraph: each question is asked after what was said.

The handbook is read whole, once, and every turn starts from there. The state of the graph is the
conversation, so a checkpointer of LangGraph keeps it, here in memory, by the name of its thread.

    python examples/langchain_history.py
    python examples/langchain_history.py handbook.pdf -q "Who approves travel?" -q "And who pays?"
    python examples/langchain_history.py handbook.pdf --interactive --model MODEL
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph

from langchain_selfextend import ChatSelfExtend, FileLoader, create_full_document_chain

DOCUMENT = Path(__file__).parent / "documents" / "handbook.pdf"
QUESTIONS = ("What is the access code of the workshop?", "What is the budget of the library?")


def conversation(chain: Runnable) -> CompiledStateGraph:
    """Return a graph with one step: the chain answers the last message, after those before it."""

    def answer(state: MessagesState) -> dict[str, list[AIMessage]]:
        *history, question = state["messages"]
        result = chain.invoke({"input": question.text, "chat_history": history})
        known = {"evidence": result["evidence"], "usage": result["usage"]}
        return {"messages": [AIMessage(result["answer"], additional_kwargs=known)]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    return graph.compile(checkpointer=InMemorySaver())


def typed() -> Iterator[str]:
    """Yield the questions that are typed, until an empty line or the end of the input."""
    try:
        while question := input("> "):
            yield question
    except EOFError:
        return


def show(question: str, answer: AIMessage) -> None:
    """Print a turn: question, answer, the best passage, and how much had been read before."""
    usage = answer.additional_kwargs["usage"]
    print(f"{question}\n{answer.text.strip()}")
    for found in answer.additional_kwargs["evidence"][:1]:
        where = found.metadata["location"] or f"character {found.metadata['start']}"
        print(f"  {where}: {' '.join(found.page_content.split())}")
    known = usage["input_token_details"]["cache_read"]
    print(f"  {usage['input_tokens']} tokens, {known} of them read before\n")


def main(arguments: list[str] | None = None) -> None:
    """Hold a conversation and print it, with the place that each answer rests on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", default=[DOCUMENT], help="documents to read")
    parser.add_argument("-q", "--question", action="append", help="may be given several times")
    parser.add_argument("-i", "--interactive", action="store_true", help="type the questions")
    parser.add_argument("--model", default="bundled", help="hub id or folder")
    given = parser.parse_args(arguments)

    llm = ChatSelfExtend(model=given.model, max_tokens=128)
    graph = conversation(create_full_document_chain(llm, FileLoader(*given.files)))
    thread: RunnableConfig = {"configurable": {"thread_id": "handbook"}}
    questions: Iterable[str] = typed() if given.interactive else given.question or QUESTIONS
    for question in questions:
        state = graph.invoke({"messages": [HumanMessage(question)]}, thread)
        show(question, state["messages"][-1])


if __name__ == "__main__":
    main()
