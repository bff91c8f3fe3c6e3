"""What the evaluation harness costs over bare `Reading.ask_batch` on the same prompts.

python benchmarks/evals_cost.py --pairs 9

Each pair reads and asks the same documents twice, in alternating order: bare, and by ``run_suite``
with rows written to a fresh file. Items are made again in both, as the harness does. Seconds are of
the processor, of one thread, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers

from selfextend_rag.bundled import FOLDER
from selfextend_rag.evals.benchmarks import Item, Question, SyntheticOptions, Task
from selfextend_rag.evals.benchmarks.files import Source
from selfextend_rag.evals.benchmarks.generated import haystack, ruler
from selfextend_rag.evals.methods import LoadedModel, MethodOptions, methods_of
from selfextend_rag.evals.methods.windowed import FramedLLM, framed
from selfextend_rag.evals.suite.rows import RowFile
from selfextend_rag.evals.suite.run import SuiteOptions, run_suite
from selfextend_rag.llm.loading.model import load_model
from selfextend_rag.llm.loading.sources import load_tokenizer


def many_questions(sentences: int) -> Task:
    """Return a task of two documents with twelve questions each, in the form of L-Eval's."""

    def items(tokens):
        for number in range(2):
            text = " ".join(haystack.prose(sentences, 500 * number))
            asked = tuple(
                Question(str(q), f"\n\nQuestion: What of {q}?\nAnswer:", {"answer": "x"}, 24)
                for q in range(12)
            )
            yield Item(str(number), "Read this.\n\n", text, asked)

    return Task(
        name=f"many/{sentences}",
        metric="exact",
        items=items,
        score=lambda question, text: {"score": float(text == question.gold["answer"])},
    )


def bare(task: Task, loaded: LoadedModel, llm: FramedLLM) -> float:
    """Return the seconds of reading and asking every item."""
    started = time.process_time()
    for item in task.items(loaded):
        document, questions = framed(llm.prompts, item)
        most = max(question.max_new_tokens for question in item.questions)
        reserve = max(len(llm.prompts.question(question)) for question in questions)
        reading = llm.read(document, max_new_tokens=most, question_reserve=reserve)
        reading.ask_batch(
            [
                {"question": text, "max_new_tokens": each.max_new_tokens}
                for text, each in zip(questions, item.questions, strict=True)
            ]
        )
    return time.process_time() - started


def harness(task: Task, loaded: LoadedModel, method) -> float:
    """Return the seconds of the same by the runner, rows written."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        with RowFile(Path(folder)) as file:
            run_suite([task], [method], loaded, file, SuiteOptions())
        return time.process_time() - started


def main() -> None:
    """Print the ratio of each task, and all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded = LoadedModel("bundled", load_model(FOLDER), load_tokenizer(FOLDER))
    llm = FramedLLM(loaded.model, loaded.tokenizer, prompt_form="plain", prefix_cache_bytes=0)
    (method,) = methods_of(["selfextend"], loaded, MethodOptions())
    options = SyntheticOptions(lengths=(2048,), samples=3)
    wanted = ("ruler/vt/2048", "ruler/fwe/2048")
    tasks = [task for task in ruler.tasks(Source(), options) if task.name in wanted]
    tasks += [many_questions(60)]
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"bundled model, float32, 1 thread; {platform.machine()}; {versions}")
    found = {}
    for task in tasks:
        bare(task, loaded, llm), harness(task, loaded, method)  # what is measured once, first
        pairs = []
        for number in range(args.pairs):
            if number % 2:
                first = bare(task, loaded, llm)
                pairs.append((harness(task, loaded, method), first))
            else:
                first = harness(task, loaded, method)
                pairs.append((first, bare(task, loaded, llm)))
        ratio = statistics.median(a / b for a, b in pairs)
        found[task.name] = round(ratio, 3)
        seconds = statistics.median(b for _, b in pairs)
        print(f"{task.name}: {ratio:.3f} of bare ask_batch ({seconds:.2f} s)", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
