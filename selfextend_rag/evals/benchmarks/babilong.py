"""BABILong: facts of bAbI's tasks, hidden among the sentences of books, ten tasks by length.

Prompts are this package's wording of the same structure: what to do, solved examples, the form of
an answer, the text, the question. Source: arXiv 2406.10149, github.com/booydar/babilong.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from selfextend_rag.evals.benchmarks.files import Source
from selfextend_rag.evals.benchmarks.items import Item, Question, Scores, Task, Tokens
from selfextend_rag.evals.metrics import retrieval

HUB = "RMT-team/babilong"
LENGTHS = ["0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M", "10M"]
MAX_NEW_TOKENS = 20

_HIDDEN = "are hidden in a text about other things. Answer the question from these facts alone."
_LATEST = "Where a person was in several places, the latest one counts."
_CARRIED = (
    "What a person took goes where the person goes, until it is put down; then it stays there."
)
_ONE_WORD = "Write nothing else, and explain nothing."
# What to do, solved examples (facts and question, answer), and the form of an answer.
_TASKS: dict[str, tuple[str, tuple[tuple[str, str], ...], str]] = {
    "qa1": (
        f"Facts about where people are {_HIDDEN} {_LATEST}",
        (
            (
                "Vera went to the cellar. Otto moved to the attic. Vera travelled to the porch. "
                "Where is Vera?",
                "The most recent location of Vera is porch.",
            ),
            (
                "Otto went to the barn. Vera went to the attic. Where is Otto?",
                "The most recent location of Otto is barn.",
            ),
        ),
        f"Answer in the form: The most recent location of PERSON is PLACE. {_ONE_WORD}",
    ),
    "qa2": (
        f"Facts about where people are and what they do {_HIDDEN} {_CARRIED}",
        (
            (
                "Vera went to the cellar. Vera took the lamp. Vera moved to the porch. "
                "Where is the lamp?",
                "The lamp is in the porch.",
            ),
            (
                "Otto went to the barn. Otto took the rope. Otto put down the rope. Otto went to "
                "the attic. Where is the rope?",
                "The rope is in the barn.",
            ),
        ),
        f"Answer in the form: The ITEM is in the PLACE. {_ONE_WORD}",
    ),
    "qa3": (
        f"Facts about where people are and what they do {_HIDDEN} {_CARRIED}",
        (
            (
                "Vera took the lamp. Vera went to the cellar. Vera moved to the porch. "
                "Where was the lamp before the porch?",
                "Before the porch the lamp was in the cellar.",
            ),
            (
                "Otto went to the barn. Otto took the rope. Otto went to the attic. Otto went to "
                "the porch. Where was the rope before the attic?",
                "Before the attic the rope was in the barn.",
            ),
        ),
        f"Answer in the form: Before the PLACE the ITEM was in the PLACE. {_ONE_WORD}",
    ),
    "qa4": (
        f"Facts about where places are {_HIDDEN}",
        (
            (
                "The cellar is south of the attic. The porch is north of the attic. "
                "What is the attic south of?",
                "porch",
            ),
            ("The barn is west of the porch. What is west of the porch?", "barn"),
        ),
        f"Answer with one word, the place. {_ONE_WORD}",
    ),
    "qa5": (
        f"Facts about people and what they give one another {_HIDDEN}",
        (
            ("Vera took the lamp. Vera handed the lamp to Otto. Who gave the lamp?", "Vera"),
            ("Otto took the rope. Otto gave the rope to Ida. Who received the rope?", "Ida"),
            ("Ida passed the cup to Vera. What did Ida give to Vera?", "cup"),
        ),
        f"Answer with one word. {_ONE_WORD}",
    ),
    "qa6": (
        f"Facts about where people are {_HIDDEN} {_LATEST}",
        (
            ("Vera went to the cellar. Vera went to the porch. Is Vera in the porch?", "yes"),
            ("Otto went to the barn. Otto went to the attic. Is Otto in the barn?", "no"),
        ),
        f"Answer with one word, yes or no. {_ONE_WORD}",
    ),
    "qa7": (
        f"Facts about people and what they carry {_HIDDEN}",
        (
            ("Vera took the lamp. How many objects is Vera carrying?", "one"),
            ("Otto took the rope. Otto gave the rope to Ida. How many is Otto carrying?", "none"),
            ("Ida took the cup. Ida took the rope. How many objects is Ida carrying?", "two"),
        ),
        f"Answer with one word, none or the number of objects. {_ONE_WORD}",
    ),
    "qa8": (
        f"Facts about people and what they carry {_HIDDEN}",
        (
            ("Vera went to the cellar. Vera took the lamp. What is Vera carrying?", "lamp"),
            ("Otto took the rope. Otto put down the rope. What is Otto carrying?", "nothing"),
            ("Ida took the cup. Ida took the rope. What is Ida carrying?", "cup,rope"),
        ),
        f"Answer with the objects, by comma, or with the word nothing. {_ONE_WORD}",
    ),
    "qa9": (
        f"Facts about where people are, and are not, {_HIDDEN} {_LATEST}",
        (
            ("Vera is not in the cellar. Otto is in the barn. Is Vera in the cellar?", "no"),
            ("Otto is not in the barn. Vera went to the porch. Is Vera in the porch?", "yes"),
        ),
        f"Answer with one word, yes or no. {_ONE_WORD}",
    ),
    "qa10": (
        f"Facts about where people are, or may be, {_HIDDEN} {_LATEST}",
        (
            ("Vera is in the cellar. Otto is in the barn. Is Vera in the barn?", "no"),
            ("Vera is either in the barn or in the attic. Is Vera in the attic?", "maybe"),
            ("Otto went to the porch. Is Otto in the porch?", "yes"),
        ),
        f"Answer with one word, yes, no or maybe. {_ONE_WORD}",
    ),
}


def tasks(source: Source) -> list[Task]:
    """Return the ten tasks at each length."""
    return [_task(source, name, length) for length in LENGTHS for name in _TASKS]


def _task(source: Source, name: str, length: str) -> Task:
    files = tuple(f"{folder}{name}/{length}.json{x}" for folder in ("data/", "") for x in ("", "l"))
    return Task(
        name=f"babilong/{name}/{length}",
        metric="only_label",
        items=partial(_items, source, name, length, files),
        score=partial(_score, name),
        available=partial(source.has, *files, hub=HUB),
    )


def _items(
    source: Source, name: str, length: str, files: tuple[str, ...], tokens: Tokens
) -> Iterator[Item]:
    what, examples, form = _TASKS[name]
    shown = "\n".join(
        f"<example>\n{asked}\nAnswer: {answer}\n</example>" for asked, answer in examples
    )
    records = source.records(
        f"babilong/{name}/{length}", *files, hub=HUB, config=length, split=name
    )
    for number, record in enumerate(records):
        asked: str = record["question"].strip()
        question = Question(
            id="0",
            text=f"\n</context>\nQuestion: {asked}",
            gold={"target": record["target"], "question": asked},
            max_new_tokens=MAX_NEW_TOKENS,
            answer=record["target"],
            query=asked,
        )  # without evidence: the books name the same places
        before = f"{what}\n{shown}\n{form}\n<context>\n"
        yield Item(str(number), before, record["input"], (question,))


def _score(name: str, question: Question, text: str) -> Scores:
    gold = question.gold
    label = str(gold["target"]), str(gold["question"])
    return {"score": 100 * retrieval.only_label(text.strip(), *label, name)}
