"""LongBench: 21 tasks in English, Chinese and code, one question on each text.

Prompts are the official ones if the folder has ``dataset2prompt.json``, and otherwise this
package's wording of the same structure. Source: arXiv 2308.14508, github.com/THUDM/LongBench.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
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
from selfextend_rag.evals.metrics import longbench

HUB = "THUDM/LongBench"

_SHORT = "Answer in as few words as you can, with nothing else."
_PASSAGES = (
    f"Answer the question from the passages. {_SHORT}\n\nPassages:\n{{context}}\n\nAnswer the "
    f"question from the passages above. {_SHORT}\n\nQuestion: {{input}}\nAnswer:"
)
_ARTICLE = (
    "Say yes, no or unanswerable where that is the answer, and otherwise answer in one phrase or "
    "sentence."
)
PROMPTS: dict[str, str] = {
    "narrativeqa": (
        f"Read a story and answer a question about it. {_SHORT}\n\nStory: {{context}}\n\n"
        f"Answer the question about the story. {_SHORT}\n\nQuestion: {{input}}\n\nAnswer:"
    ),
    "qasper": (
        f"Answer a question about a scientific article. {_ARTICLE}\n\nArticle: {{context}}\n\n"
        f"Answer the question about the article above. {_ARTICLE}\n\nQuestion: {{input}}\n\nAnswer:"
    ),
    "multifieldqa_en": (
        "Read this text and answer briefly.\n\n{context}\n\nAnswer the question from the text "
        f"above. {_SHORT}\n\nQuestion: {{input}}\nAnswer:"
    ),
    "multifieldqa_zh": (
        "请阅读下文，然后用中文简要作答。\n\n{context}\n\n请根据上文回答问题，只写答案。\n\n问题：{input}\n回答："
    ),
    "hotpotqa": _PASSAGES,
    "2wikimqa": _PASSAGES,
    "musique": _PASSAGES,
    "dureader": (
        "请根据文章回答问题。\n\n文章：{context}\n\n请根据上面的文章作答。\n\n问题：{input}\n回答："
    ),
    "gov_report": (
        "Summarize a government report on one page.\n\nReport:\n{context}\n\nWrite a summary of "
        "the report on one page.\n\nSummary:"
    ),
    "qmsum": (
        "Answer a query about a meeting in one or more sentences.\n\nTranscript:\n{context}\n\n"
        "Answer the query about the meeting above in one or more sentences.\n\nQuery: {input}\n"
        "Answer:"
    ),
    "multi_news": (
        "Summarize several news articles on one page.\n\nNews:\n{context}\n\n"
        "Write a summary of all of the news on one page.\n\nSummary:"
    ),
    "vcsum": "请阅读会议记录，并写出会议内容的总结。\n会议记录：\n{context}\n\n会议总结：",
    "trec": "Find the type of the last question, as in these examples.\n\n{context}\n{input}",
    "triviaqa": (
        f"Answer the question from the passage, as in these examples. {_SHORT}\n\n{{context}}\n\n"
        "{input}"
    ),
    "samsum": (
        "Summarize the last dialogue in a few sentences, as in these examples.\n\n{context}\n\n"
        "{input}"
    ),
    "lsht": "请像下面的例子那样，判断新闻的类别。\n\n{context}\n{input}",
    "passage_count": (
        "Some of these paragraphs may be repeated. Count how many different ones there are.\n\n"
        "{context}\n\nGive the number of different paragraphs, as a number and nothing else.\n\n"
        "The number is: "
    ),
    "passage_retrieval_en": (
        "Here are paragraphs, and an abstract of one of them. Find out which one it is of.\n\n"
        "{context}\n\nThis is the abstract.\n\n{input}\n\nName the paragraph that it is of, in the "
        'form "Paragraph 1".\n\nThe answer is: '
    ),
    "passage_retrieval_zh": (
        "下面是若干段落，以及其中一段的摘要。请找出摘要属于哪一段。\n\n{context}\n\n摘要如下\n\n{input}\n\n"
        "请写出该段的编号，格式为“段落1”。\n\n答案是："
    ),
    "lcc": "Complete this code.\n{context}Next line of code:\n",
    "repobench-p": "Complete this code.\n{context}{input}Next line of code:\n",
}
MAX_NEW_TOKENS = {
    **dict.fromkeys(("passage_count", "passage_retrieval_en", "passage_retrieval_zh"), 32),
    **dict.fromkeys(("triviaqa", "hotpotqa", "musique", "2wikimqa"), 32),
    **dict.fromkeys(("trec", "lsht", "multifieldqa_en", "multifieldqa_zh", "lcc"), 64),
    **dict.fromkeys(("repobench-p",), 64),
    **dict.fromkeys(("narrativeqa", "qasper", "dureader", "samsum"), 128),
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "vcsum"), 512),
}
"""The longest answer of each task, as in the official ``dataset2maxlen.json``."""

WITHOUT_CHAT = frozenset(("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"))
"""Tasks that are asked without a chat template, since they continue examples or code."""

_WITHOUT_PLACE = frozenset(("trec", "lsht", "passage_count"))  # classes and counts
_YES_OR_NO = frozenset(("yes", "no", "Yes", "No", "unanswerable"))
_CHINESE_LIBRARIES = frozenset(("multifieldqa_zh", "dureader", "vcsum"))
_ROUGE = frozenset(("gov_report", "qmsum", "multi_news", "samsum", "dureader", "vcsum"))


def tasks(source: Source) -> list[Task]:
    """Return the 21 tasks."""
    official = source.text("dataset2prompt.json") or source.text("config/dataset2prompt.json")
    prompts: Mapping[str, str] = json.loads(official) if official else {}
    return [_task(source, name, prompts.get(name)) for name in PROMPTS]


def _task(source: Source, name: str, official: str | None) -> Task:
    needs = (*(("rouge",) if name in _ROUGE else ()),)
    needs += ("jieba",) if name in _CHINESE_LIBRARIES else ()
    metric = "classification" if name in longbench.CLASSIFIED else longbench.METRICS[name].__name__
    return Task(
        name=f"longbench/{name}",
        metric=metric,
        items=partial(_items, source, name, official or PROMPTS[name]),
        score=partial(_score, name),
        cut="middle",
        prompt="official" if official else "own",
        needs=needs,
        available=partial(source.has, *_files(name), hub=HUB),
    )


def _files(name: str) -> tuple[str, ...]:
    return tuple(f"{folder}{name}.jsonl{end}" for end in ("", ".gz") for folder in ("data/", ""))


def _items(source: Source, name: str, prompt: str, tokens: Tokens) -> Iterator[Item]:
    records = source.records(f"longbench/{name}", *_files(name), hub=HUB, config=name)
    for number, record in enumerate(records):
        yield _item(name, prompt, number, record)


def _item(name: str, prompt: str, number: int, record: Record) -> Item:
    before, found, after = prompt.partition("{context}")
    if not found:
        raise BenchmarkError(f"the prompt of {name} has no place for a {{context}}")
    answers: Sequence[str] = record["answers"]
    question = Question(
        id="0",
        text=after.replace("{input}", record["input"]),
        gold={"answers": list(answers), "all_classes": record.get("all_classes")},
        max_new_tokens=MAX_NEW_TOKENS[name],
        answer=answers[0] if answers else "",
        query=record["input"],
        evidence=() if name in _WITHOUT_PLACE else tuple(x for x in answers if x not in _YES_OR_NO),
    )
    length = record.get("length")
    return Item(
        id=str(record.get("_id") or number),
        before=before.replace("{input}", record["input"]),
        document=record["context"],
        questions=(question,),
        chat=name not in WITHOUT_CHAT,
        groups={} if length is None else {"words": _bucket(length)},
    )


def _bucket(length: int) -> str:
    """Return LongBench-E's name of a length, which counts words or characters."""
    return "0-4k" if length < 4000 else "4-8k" if length < 8000 else "8k+"


def _score(name: str, question: Question, text: str) -> Scores:
    gold = question.gold
    found = longbench.score(name, text, gold["answers"], gold["all_classes"])  # type: ignore[arg-type]  # as the record has them
    return {"score": 100 * found}
