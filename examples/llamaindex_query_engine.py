"""A query engine over whole documents: answers as they come, and the passages they rest on.

python examples/llamaindex_query_engine.py
python examples/llamaindex_query_engine.py report.pdf -q "Who approved it?" --model MODEL
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from llama_index.core import Document
from llama_index.core.base.response.schema import StreamingResponse

from llama_index.llms.selfextend import FullDocumentQueryEngine, SelfExtendLLM
from selfextend_rag import Document as File

DOCUMENT = Path(__file__).parent / "documents" / "genesis.txt"
QUESTIONS = ("What is the fourth river?",)


def load(path: Path) -> Document:
    """Return a text, Markdown, HTML or PDF file as one document."""
    file = File.from_file(path)
    return Document(text=file.text, id_=path.name, metadata={"file_name": path.name})


def main(arguments: list[str] | None = None) -> None:
    """Read the documents once, then answer each question and show where it comes from."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, default=[DOCUMENT])
    parser.add_argument("-q", "--question", action="append", dest="questions")
    parser.add_argument("--model", default="bundled", help="hub id or folder")
    args = parser.parse_args(arguments)

    llm = SelfExtendLLM(args.model)
    started = time.perf_counter()
    engine = FullDocumentQueryEngine.from_documents(
        [load(path) for path in args.files], llm=llm, streaming=True
    )
    print(f"{engine.reading.plan.explain()}\nRead in {time.perf_counter() - started:.1f} s.")
    for question in args.questions or QUESTIONS:
        print(f"\n{question}")
        started = time.perf_counter()
        response = engine.query(question)
        assert isinstance(response, StreamingResponse)
        response.print_response_stream()
        print(f"\n  answered in {time.perf_counter() - started:.2f} s, from:")
        for source in response.source_nodes[:3]:
            place = (
                f"{source.node.metadata['file_name']}, from character {source.node.start_char_idx}"
            )
            print(f"  [{source.score:.2f}] {place}: {' '.join(source.node.get_content().split())}")


if __name__ == "__main__":
    main()
