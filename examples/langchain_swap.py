"""A classic retrieval chain of LangChain, and the same chain with two lines changed.

The classic one splits the documents, embeds the chunks and gives the model the three that are
nearest to the question. The other gives it the whole documents. Both are asked the same questions,
each of them twice: what was read for the first time is not read again.

    python examples/langchain_swap.py
    python examples/langchain_swap.py report.pdf notes.md -q "Who approved it?" --model MODEL
"""

from __future__ import annotations

import argparse
import math
import re
import time
import zlib
from collections import Counter
from pathlib import Path

from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter

from langchain_selfextend import ChatSelfExtend, FileLoader, FullDocumentRetriever

DOCUMENT = Path(__file__).parent / "documents" / "genesis.txt"
QUESTIONS = ("What is the fourth river?",)
PROMPT = ChatPromptTemplate.from_messages([("system", "{context}"), ("human", "{input}")])


def classic_chain(llm: ChatSelfExtend, documents: list[Document]) -> Runnable:
    """Return a chain that answers from the chunks nearest to a question."""
    pieces = RecursiveCharacterTextSplitter(chunk_size=500).split_documents(documents)
    retriever = InMemoryVectorStore.from_documents(pieces, WordEmbeddings()).as_retriever(k=3)
    return create_retrieval_chain(retriever, create_stuff_documents_chain(llm, PROMPT))


def full_document_chain(llm: ChatSelfExtend, documents: list[Document]) -> Runnable:
    """Return a chain that answers from the whole documents."""
    retriever = FullDocumentRetriever(documents=documents)
    return create_retrieval_chain(retriever, create_stuff_documents_chain(llm, PROMPT))


class WordEmbeddings(Embeddings):
    """Texts as counts of their words, hashed to a few thousand places; needs no download."""

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a text, of length 1."""
        vector = [0.0] * 4096
        for word, count in Counter(re.findall(r"\w+", text.lower())).items():
            vector[zlib.crc32(word.encode()) % len(vector)] += 1 + math.log(count)
        length = math.sqrt(sum(value * value for value in vector)) or 1.0
        return [value / length for value in vector]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vector of each text."""
        return [self.embed_query(text) for text in texts]


def main(arguments: list[str] | None = None) -> None:
    """Ask both chains and print their answers and times side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", default=[DOCUMENT], help="documents to read")
    parser.add_argument("-q", "--question", action="append", help="may be given several times")
    parser.add_argument("--model", default="bundled", help="hub id or folder")
    given = parser.parse_args(arguments)

    llm = ChatSelfExtend(model=given.model, max_tokens=64)
    documents = FileLoader(*given.files).load()
    chains = {
        "three chunks": classic_chain(llm, documents),
        "whole documents": full_document_chain(llm, documents),
    }
    tokens = sum(llm.get_num_tokens(document.page_content) for document in documents)
    print(f"{len(documents)} document(s), {tokens} tokens\n")
    for question in given.question or QUESTIONS:
        print(f"{question}\n  {'':16} {'first':>8} {'again':>8}  answer")
        for name, chain in chains.items():
            first, answer = timed(chain, question)
            again, _ = timed(chain, question)
            print(f"  {name:16} {first:6.2f} s {again:6.2f} s  {' '.join(answer.split())}")


def timed(chain: Runnable, question: str) -> tuple[float, str]:
    """Return the seconds an answer took, and the answer."""
    started = time.perf_counter()
    answer = chain.invoke({"input": question})["answer"]
    return time.perf_counter() - started, answer


if __name__ == "__main__":
    main()
