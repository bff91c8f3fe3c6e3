"""L-Eval: 20 tasks, many questions on each document.

Of its data this package has nothing: the records are GPL-3.0 and are read from a folder. Prompts
are this package's wording of the same structure. Source: arXiv 2307.11088,
github.com/OpenLMLab/LEval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

from selfextend_rag.evals.benchmarks.files import Record, Source
from selfextend_rag.evals.benchmarks.items import Item, Question, Scores, Task, Tokens, mean_score
from selfextend_rag.evals.metrics import leval

HUB = "L4NLP/LEval"
MAX_NEW_TOKENS = 512
CLOSED = ("coursera", "quality", "topic_retrieval_longchat", "tpo", "gsm100", "codeU", "sci_fi")
OPEN = (
    "financial_qa", "gov_report_summ", "legal_contract_qa", "meeting_summ", "multidoc_qa",
    "narrative_qa", "natural_question", "news_summ", "paper_assistant", "patent_summ",
    "review_summ", "scientific_qa", "tv_show_summ",
)  # fmt: skip
_F1 = frozenset(
    ("financial_qa", "legal_contract_qa", "multidoc_qa", "narrative_qa", "natural_question")
) | {"scientific_qa"}

_LONG = "Here is a very long document. Follow the instruction after it."
_SYSTEM: dict[str, str] = {
    "gsm100": (
        "Here are questions with worked answers. Answer the last question in the same way, and end "
        "with: The answer is _ ."
    ),
    "topic_retrieval_longchat": (
        "Here is a record of our conversation on many topics. You are the ASSISTANT, and I am the "
        "USER. Each topic begins where I say 'I would like to discuss the topic of <TOPIC>'. "
        "Memorize each <TOPIC>; I will ask for the first, second and third after the record. "
    ),
    "coursera": (
        f"{_LONG} One or several options of a question may be right. Answer with the letters "
        "alone, such as A or AB. "
    ),
    "codeU": (
        "Here are many functions with comments. At the end, some are called. Read the code and "
        "answer the question. "
    ),
    "sci_fi": (
        'Here is a novel. Answer questions about it with "True" or "False", by what the novel says '
        "and not by what you know. "
    ),
    **dict.fromkeys(
        ("quality", "tpo"),
        f"{_LONG} One option of a question is right. Answer with its letter alone, such as A. ",
    ),
}
_OPEN_SYSTEM = f"{_LONG} It may ask for a summary, an answer or a paragraph. "
_CONTINUED = frozenset(("gsm100", "codeU", "topic_retrieval_longchat"))  # a record, not a document
_WITHOUT_PLACE = frozenset(CLOSED) - {"topic_retrieval_longchat"}  # letters, numbers, true or false
_BY_JUDGES = frozenset(("LLM", "human"))
_NOTE = "an automatic score; records for which L-Eval wants a judge are left out, or all so scored"
_TWICE = "a novel counts as two documents: its questions are asked with it, and without it"
_OF_THE_NOVEL = "based on the world described in the document."
_OF_THE_WORLD = "based on the real-world knowledge and facts up until your last training"


def tasks(source: Source) -> list[Task]:
    """Return the 20 tasks."""
    return [_task(source, name) for name in (*CLOSED, *OPEN)]


def _task(source: Source, name: str) -> Task:
    rouge = name in OPEN and name not in _F1
    return Task(
        name=f"leval/{name}",
        metric="exam" if name in CLOSED else "f1" if name in _F1 else "rouge",
        items=partial(_items, source, name),
        score=partial(_score, name),
        summary=_SUMMARIES.get(name, _mean_rouge if rouge else mean_score),
        cut="head" if name == "codeU" else "tail",
        needs=("rouge_score",) if name in OPEN else (),
        available=partial(source.has, *_files(name), hub=HUB),
        note=_NOTE if name in OPEN else _TWICE if name == "sci_fi" else "",
    )


def _files(name: str) -> tuple[str, ...]:
    kind = "Closed-ended-tasks" if name in CLOSED else "Open-ended-tasks"
    return f"LEval-data/{kind}/{name}.jsonl", f"{kind}/{name}.jsonl", f"{name}.jsonl"


def _items(source: Source, name: str, tokens: Tokens) -> Iterator[Item]:
    """Yield the records that have an automatic score, or all if a judge is wanted for all."""
    records = list(source.records(f"leval/{name}", *_files(name), hub=HUB, config=name))
    scored = [record for record in records if record["evaluation"] not in _BY_JUDGES]
    for number, record in enumerate(scored or records):
        yield from _of_record(name, number, record)


def _of_record(name: str, number: int, record: Record) -> Iterator[Item]:
    system = _SYSTEM.get(name, _OPEN_SYSTEM)
    if name not in _CONTINUED:
        system = f"{system}\nThe document:\n"
    pairs = list(zip(record["instructions"], record["outputs"], strict=True))
    metric = record["evaluation"]
    questions = [_question(name, metric, place, *pair) for place, pair in enumerate(pairs)]
    yield Item(str(number), before=system, document=record["input"], questions=tuple(questions))
    if name == "sci_fi":  # asked again without the novel, of our world
        facts = tuple(_of_our_world(place, *pair) for place, pair in enumerate(pairs))
        yield Item(f"{number}-fact", before="", document="Question:", questions=facts)


def _question(name: str, metric: str, place: int, instruction: str, output: str) -> Question:
    gold = {"output": output, "place": place % 3, "half": 0, "metric": metric}
    asked, begin = f"\n\n{instruction}", ""
    if name in OPEN:
        asked = f"\nInstruction: {instruction}\nAnswer in {len(output.split())} words."
    elif name not in _CONTINUED:
        asked = f"\nQuestion: {instruction}\nAnswer directly, without any explanation."
        begin = "\nAnswer:"
    evidence = () if name in _WITHOUT_PLACE else (output,)
    return Question(
        str(place),
        asked,
        gold,
        MAX_NEW_TOKENS,
        begin=begin,
        answer=output,
        query=instruction,
        evidence=evidence,
    )


def _of_our_world(place: int, instruction: str, output: str) -> Question:
    asked = instruction.replace(_OF_THE_NOVEL, _OF_THE_WORLD)
    gold = {"output": output, "half": 1}
    return Question(str(place), f" {asked}", gold, MAX_NEW_TOKENS, begin="\nAnswer:")


def _score(name: str, question: Question, text: str) -> Scores:
    gold = question.gold
    output = str(gold["output"])
    if name == "sci_fi":
        half = int(str(gold["half"]))
        score = leval.judgement(f"{text} [fact: {text}]", output)[half]
        return {"score": score, "fact" if half else "loyalty": score}
    if name in CLOSED:
        return {"score": leval.exam(name, text, output), "place": float(str(gold["place"]))}
    metric = (
        gold["metric"] if gold["metric"] not in _BY_JUDGES else "f1" if name in _F1 else "rouge"
    )
    if metric == "f1":
        return {"score": leval.f1(text, output)}
    scores = leval.rouge(text, output)
    return {**scores, "score": scores["geometric_mean"]}


def _mean_by_place(rows: Sequence[Scores]) -> float:
    """Return the mean of the means of the first, second and third topics."""
    places = [[row for row in rows if row["place"] == place] for place in range(3)]
    means = [mean_score(place) for place in places if place]
    return math.fsum(means) / len(means)


def _mean_of_halves(rows: Sequence[Scores]) -> float:
    """Return the mean of the means over what holds in the novel and in our world."""
    halves = [[row for row in rows if name in row] for name in ("loyalty", "fact")]
    means = [mean_score(half) for half in halves if half]
    return math.fsum(means) / len(means)


def _mean_rouge(rows: Sequence[Scores]) -> float:
    """Return the geometric mean of the mean ROUGE scores; the mean F1 of records scored by that."""
    names = ("rouge1", "rouge2", "rougeL")
    scored = [row for row in rows if names[0] in row]
    if not scored:
        return mean_score(rows)
    return leval.geometric_mean([math.fsum(row[x] for row in scored) / len(scored) for x in names])


_SUMMARIES = {"topic_retrieval_longchat": _mean_by_place, "sci_fi": _mean_of_halves}
