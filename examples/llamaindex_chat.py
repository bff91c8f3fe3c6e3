"""A chat with LlamaIndex over documents that were read whole: streamed, with pages, and kept.

The chat engine continues from the documents and from what was said; nothing of either is cut or
summarised. With --reading, what was read is kept in a file, and the next run starts from it.

    python examples/llamaindex_chat.py
    python examples/llamaindex_chat.py report.pdf --reading report.kv -q "Who approved it?"
    python examples/llamaindex_chat.py report.pdf --interactive --model MODEL
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from llama_index.core.chat_engine.types import BaseChatEngine

from llama_index.llms.selfextend import FileReader, FullDocumentQueryEngine, SelfExtendLLM
from selfextend_rag import read_documents

DOCUMENT = Path(__file__).parent / "documents" / "handbook.pdf"
QUESTIONS = ("What is the access code of the workshop?", "What is the budget of the library?")


def engine_over(
    llm: SelfExtendLLM, files: list[Path], reading: Path | None
) -> FullDocumentQueryEngine:
    """Return an engine that has read the files, or that continues from the reading of them.

    Raises:
        CacheMismatchError: the reading is of other documents, or of another model.
    """
    if reading is None or not reading.exists():
        documents = FileReader().load_data(*files)
        engine = FullDocumentQueryEngine.from_documents(documents, llm=llm)
        print(engine.reading.plan.explain(), end="\n\n")
        if reading is not None:
            engine.reading.save(reading)
        return engine
    print(f"Continuing from {reading}\n")
    expected = [document for file in files for document in read_documents(file).documents]
    return FullDocumentQueryEngine(llm, llm.core.load(reading, documents=expected))


def typed() -> Iterator[str]:
    """Yield the questions that are typed, until an empty line or the end of the input."""
    try:
        while question := input("> "):
            yield question
    except EOFError:
        return


def say(chat: BaseChatEngine, question: str) -> None:
    """Print an answer as it comes, and the passages it rests on."""
    print(question)
    response = chat.stream_chat(question)
    for text in response.response_gen:
        print(text, end="", flush=True)
    print()
    for source in response.source_nodes[:2]:
        node = source.node
        where = node.metadata.get("location") or f"character {node.start_char_idx}"
        print(f"  [{source.score:.2f}] {where}: {' '.join(node.get_content().split())}")


def main(arguments: list[str] | None = None) -> None:
    """Read the documents once and chat about them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, default=[DOCUMENT])
    parser.add_argument("-q", "--question", action="append", dest="questions")
    parser.add_argument("-i", "--interactive", action="store_true", help="type the questions")
    parser.add_argument("--reading", type=Path, help="file to keep what was read in")
    parser.add_argument("--model", default="bundled", help="hub id or folder")
    args = parser.parse_args(arguments)

    engine = engine_over(SelfExtendLLM(args.model), args.files, args.reading)
    chat = engine.as_chat_engine()
    questions: Iterable[str] = typed() if args.interactive else args.questions or QUESTIONS
    for question in questions:
        say(chat, question)


if __name__ == "__main__":
    main()
