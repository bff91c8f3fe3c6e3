"""A LangGraph agent that answers over whole documents, and cites the page each answer rests on.

Its one tool reads the documents whole, once, and gives back an answer together with its evidence.
The agent writes the final answer; the citations come from the tool and can't be made up.

    python examples/langchain_agent.py
    python examples/langchain_agent.py report.pdf notes/ -q "Who approved it?" --model MODEL
"""

from __future__ import annotations

import argparse
from pathlib import Path

from langchain.agents import create_agent
from langchain.tools import BaseTool, ToolRuntime, tool
from langchain_core.documents import Document
from langchain_core.messages import AnyMessage, HumanMessage, ToolMessage

from langchain_selfextend import ChatSelfExtend, FileLoader, create_full_document_chain

DOCUMENT = Path(__file__).parent / "documents" / "handbook.pdf"
QUESTIONS = ("What is the access code of the workshop?", "How high is the dome?")


def reading_tool(llm: ChatSelfExtend, documents: list[Document]) -> BaseTool:
    """Return a tool that answers the user's question over the whole documents."""
    chain = create_full_document_chain(llm, documents)

    @tool(response_format="content_and_artifact")
    def read_documents(runtime: ToolRuntime) -> tuple[str, list[Document]]:
        """Answer the user's question over all documents, read whole."""
        result = chain.invoke({"input": last_question(runtime.state["messages"])})
        best = " ".join(passage.page_content for passage in result["evidence"][:1])
        return f"{result['answer']} ({best})", result["evidence"]

    return read_documents


def last_question(messages: list[AnyMessage]) -> str:
    """Return what the user asked last, in the user's words: a model need not repeat them."""
    return next(each.text for each in reversed(messages) if isinstance(each, HumanMessage))


def citations(messages: list[AnyMessage]) -> list[str]:
    """Return where the answers of all tools come from: file, place in it, share, words."""
    return [
        f"{Path(found.metadata['source']).name}, {place(found)} "
        f"({found.metadata['score']:.0%}): {' '.join(found.page_content.split())}"
        for message in messages
        if isinstance(message, ToolMessage)
        for found in message.artifact or []
    ]


def place(passage: Document) -> str:
    """Return the page, sheet or slide of a passage, or its first character in plain text."""
    return passage.metadata["location"] or f"character {passage.metadata['start']}"


def main(arguments: list[str] | None = None) -> None:
    """Ask the agent each question and print its answer with the citations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", default=[DOCUMENT], help="files and folders to read")
    parser.add_argument("-q", "--question", action="append", help="may be given several times")
    parser.add_argument("--model", default="bundled", help="hub id or folder")
    given = parser.parse_args(arguments)

    # The small bundled model can't judge when to call a tool: it has to, once, and then answers.
    first = "any" if given.model == "bundled" else None
    llm = ChatSelfExtend(model=given.model, max_tokens=256, initial_tool_choice=first)
    agent = create_agent(llm, [reading_tool(llm, FileLoader(*given.files).load())])
    for question in given.question or QUESTIONS:
        messages = agent.invoke({"messages": [HumanMessage(question)]})["messages"]
        print(f"{question}\n{messages[-1].text.strip()}")
        for citation in citations(messages):
            print(f"  {citation}")


if __name__ == "__main__":
    main()
