"""Lost in the middle: questions over documents, one of which has the answer, and key-value pairs.

Prompts are the official ones if the folder has them, and otherwise this package's wording of the
same structure. Source: arXiv 2307.03172, github.com/nelson-liu/lost-in-the-middle.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from selfextend_rag.evals.benchmarks.files import Record, Source
from selfextend_rag.evals.benchmarks.items import (
    BenchmarkError,
    Item,
    Question,
    Scores,
    Task,
    Tokens,
)
from selfextend_rag.evals.metrics import retrieval

MAX_NEW_TOKENS = 100
GOLD_POSITIONS = {10: (0, 4, 9), 20: (0, 4, 9, 14, 19), 30: (0, 4, 9, 14, 19, 24, 29)}
"""Where the document with the answer is among so many, from 0."""

KEY_POSITIONS = {
    75: (0, 24, 49, 74),
    140: (0, 34, 69, 104, 139),
    300: (0, 49, 99, 149, 199, 249, 299),
}
"""Where the key that is asked for is moved to, among so many."""

_QA = (
    "Answer the question from these search results alone; some of them may have nothing to do with "
    "it.\n\n{search_results}\n\nQuestion: {question}\nAnswer:"
)
_KV = (
    "Find the value of a key in this JSON object.\n\nJSON data:\n{formatted_kv_records}\n\n"
    'Key: "{key}"\nCorresponding value:'
)
_PROMPTS = ("src/lost_in_the_middle/prompts/", "prompts/", "")


def tasks(source: Source) -> list[Task]:
    """Return the tasks of both kinds, by number of documents or keys and the place of the gold."""
    found = [_qa_task(source, "oracle", "qa_data/nq-open-oracle.jsonl.gz", None)]
    for total, places in GOLD_POSITIONS.items():
        for place in places:
            file = f"nq-open-{total}_total_documents_gold_at_{place}.jsonl.gz"
            path = f"qa_data/{total}_total_documents/{file}"
            found.append(_qa_task(source, f"{total}/gold_at_{place}", path, place))
    for keys, places in KEY_POSITIONS.items():
        found += [_kv_task(source, keys, place) for place in (None, *places)]
    return found


def _prompt(source: Source, name: str, own: str) -> tuple[str, bool]:
    """Return a prompt, without the line ends after it, and whether it is the official one."""
    for folder in _PROMPTS:
        official = source.text(f"{folder}{name}.prompt")
        if official is not None:
            return official.rstrip("\n"), True
    return own, False


def _halves(prompt: str, mark: str) -> tuple[str, str]:
    before, found, after = prompt.partition(mark)
    if not found:
        raise BenchmarkError(f"the prompt has no place for {mark}")
    return before, after


def _qa_task(source: Source, name: str, path: str, place: int | None) -> Task:
    prompt, official = _prompt(source, "qa", _QA)
    return Task(
        name=f"mdqa/{name}",
        metric="best_subspan_em",
        items=partial(_qa_items, source, name, path, place, prompt),
        score=_qa_score,
        cut="skip",
        prompt="official" if official else "own",
        available=partial(source.has, *_files(path)),
    )


def _files(path: str) -> tuple[str, ...]:
    plain = path.removesuffix(".gz")
    return path, plain, path.rpartition("/")[2], plain.rpartition("/")[2]


def _qa_items(
    source: Source, name: str, path: str, place: int | None, prompt: str, tokens: Tokens
) -> Iterator[Item]:
    before, after = _halves(prompt, "{search_results}")
    for number, record in enumerate(source.records(f"mdqa/{name}", *_files(path))):
        documents = [
            f"Document [{index}](Title: {ctx['title']}) {ctx['text']}"
            for index, ctx in enumerate(record["ctxs"], 1)
        ]
        question = Question(
            id="0",
            text=after.replace("{question}", record["question"]),
            gold={"answers": list(record["answers"])},
            max_new_tokens=MAX_NEW_TOKENS,
            answer=record["answers"][0],
            query=record["question"],
            evidence=tuple(record["answers"]),
        )
        yield Item(
            id=str(number),
            before=before.replace("{question}", record["question"]),
            document="\n".join(documents),
            questions=(question,),
            groups={} if place is None else {"gold_at": place, "documents": len(documents)},
        )


def _qa_score(question: Question, text: str) -> Scores:
    answers: list[str] = question.gold["answers"]  # type: ignore[assignment]  # as the task made it
    return {
        "score": 100 * retrieval.best_subspan_em(text.strip(), answers)
    }  # kept so by its program


def _kv_task(source: Source, keys: int, place: int | None) -> Task:
    prompt, official = _prompt(source, "kv_retrieval", _KV)
    name = f"kv/{keys}" if place is None else f"kv/{keys}/gold_at_{place}"
    files = _files(f"kv_retrieval_data/kv-retrieval-{keys}_keys.jsonl.gz")
    return Task(
        name=name if place is not None else f"{name}/as_given",
        metric="accuracy",
        items=partial(_kv_items, source, name, files, place, prompt),
        score=_kv_score,
        prompt="official" if official else "own",
        available=partial(source.has, *files),
    )


def _kv_items(
    source: Source,
    name: str,
    files: tuple[str, ...],
    place: int | None,
    prompt: str,
    tokens: Tokens,
) -> Iterator[Item]:
    before, after = _halves(prompt, "{formatted_kv_records}")
    for number, record in enumerate(source.records(name, *files)):
        yield _kv_item(number, record, place, before, after)


def _kv_item(number: int, record: Record, place: int | None, before: str, after: str) -> Item:
    pairs = [tuple(pair) for pair in record["ordered_kv_records"]]
    gold = (record["key"], record["value"])
    if place is not None:
        pairs.remove(gold)
        pairs.insert(place, gold)
    data = ",\n ".join(f'"{key}": "{value}"' for key, value in pairs)
    question = Question(
        id="0",
        text=after.replace("{key}", record["key"]),
        gold={"value": record["value"]},
        max_new_tokens=MAX_NEW_TOKENS,
        answer=f'"{record["value"]}"',
        query=record["key"],
        evidence=(record["value"],),
    )
    at = pairs.index(gold)
    return Item(
        id=str(number),
        before=before.replace("{key}", record["key"]),
        document=f"{{{data}}}",
        questions=(question,),
        groups={"keys": len(pairs), "depth": round(at / max(1, len(pairs) - 1), 1)},
    )


def _kv_score(question: Question, text: str) -> Scores:
    return {"score": 100 * retrieval.holds_value(text, str(question.gold["value"]))}
