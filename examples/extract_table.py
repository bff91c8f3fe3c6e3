"""A folder of documents as a table: one row for each document, one column for each property.

A JSON schema says what to look for. The `description` of a property is the question that is asked,
and its type and bounds are enforced while the answer is generated, so each cell is valid. Every
document is read once, whole, and asked all questions at a time.

    python examples/extract_table.py
    python examples/extract_table.py contracts/ --schema terms.json --out terms.csv --model MODEL
    python examples/extract_table.py contracts/ --schema terms.json --evidence
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from selfextend_rag import Answer, Document, LongContextLLM, read_documents

FOLDER = Path(__file__).parent / "documents" / "lighthouses"
SCHEMA = Path(__file__).parent / "documents" / "lighthouses.schema.json"

Schema = Mapping[str, Any]


def documents_of(paths: Sequence[Path]) -> list[Document]:
    """Return the documents of files and folders; say what there can't be read, or not all of."""
    documents = []
    for path in paths:
        found = read_documents(path)
        documents += found.documents
        for skipped in found.skipped:
            print(f"left out: {skipped.message}", file=sys.stderr)
        for document in found.documents:
            for remark in document.remarks:
                print(f"{document.title}: {remark.message}", file=sys.stderr)
    return documents


def row(llm: LongContextLLM, document: Document, columns: Mapping[str, Schema]) -> list[Answer]:
    """Return the answer for each column, all of them from one reading of the document."""
    questions = [question(name, schema) for name, schema in columns.items()]
    reading = llm.read(document, question=[each["question"] for each in questions])
    return reading.ask_batch(questions, evidence=True)


def question(name: str, schema: Schema) -> dict[str, Any]:
    """Return what to ask for a property, and the form of its answer."""
    asked = schema.get("description") or f"What is the {name.replace('_', ' ')}?"
    return {"question": asked, "json_schema": schema}


def cells(answer: Answer, with_evidence: bool) -> list[object]:
    """Return the value of an answer, None if it was cut off, and the sentence it rests on."""
    value = json.loads(answer.text) if answer.complete else None
    if not with_evidence:
        return [value]
    best = answer.evidence[0] if answer.evidence else None
    place = f"{best.location}: " if best and best.location else ""
    return [value, f"{place}{' '.join(best.text.split())}" if best else None]


def header(columns: Sequence[str], with_evidence: bool) -> list[str]:
    """Return the names of the columns."""
    names = ([name, f"{name} evidence"] if with_evidence else [name] for name in columns)
    return ["document", *(each for pair in names for each in pair)]


def opened(path: Path | None) -> AbstractContextManager[TextIO]:
    """Return a file to write the table to: standard output, left open, if none is named."""
    return path.open("w", encoding="utf-8", newline="") if path else nullcontext(sys.stdout)


def main(arguments: list[str] | None = None) -> None:
    """Read each document of the folders and write its row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, default=[FOLDER], help="files and folders")
    parser.add_argument("--schema", type=Path, default=SCHEMA, help="JSON schema of an object")
    parser.add_argument("--out", type=Path, help="CSV file; by default it is printed")
    parser.add_argument("--evidence", action="store_true", help="add the sentence of each value")
    parser.add_argument("--model", help="hub id or folder; by default the small bundled one")
    args = parser.parse_args(arguments)

    columns = json.loads(args.schema.read_text("utf-8"))["properties"]
    documents = documents_of(args.paths)
    llm = LongContextLLM.from_pretrained(args.model) if args.model else LongContextLLM.bundled()
    with opened(args.out) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header(list(columns), args.evidence))
        for document in documents:
            answers = row(llm, document, columns)
            for name, answer in zip(columns, answers, strict=True):
                if not answer.complete:
                    print(f"{document.title}: {name} was cut off", file=sys.stderr)
            found = (cells(answer, args.evidence) for answer in answers)
            table.writerow([document.title, *(each for pair in found for each in pair)])
            file.flush()


if __name__ == "__main__":
    main()
