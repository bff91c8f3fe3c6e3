"""Time to the first token through `serve` over `LongContextLLM` directly, the document read before.

    python benchmarks/serve_overhead.py [--pairs 400] [--tokens 8000] [--httpx]

The same question in pairs, in changing order: asked directly in the server's process, and over
loopback by a client that is a process of its own, as clients are: by Python's own library, or by
httpx, which takes a millisecond more by itself. The ratio of each pair counts; their median is
printed.
"""

import argparse
import http.client
import json
import multiprocessing
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import httpx
import uvicorn

from selfextend_rag.documents import Document
from selfextend_rag.evals.prose import king_james
from selfextend_rag.llm import LongContextLLM
from selfextend_rag.serve import ServerSettings, create_app, listen
from selfextend_rag.serve.run import server_config

MAX_TOKENS = 4
PATH = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


def direct(reading, question: str) -> float:
    """Return the seconds to the first text of an answer."""
    begun = time.perf_counter()
    with reading.stream(question, max_new_tokens=MAX_TOKENS) as stream:
        next(stream)
        return time.perf_counter() - begun


def served(lines_of: Callable[[bytes], Iterator[str]], file_id: str, question: str) -> float:
    """Return the seconds to the first text of an answer over HTTP."""
    content = [
        {"type": "file", "file": {"file_id": file_id}},
        {"type": "text", "text": question},
    ]
    message = {"role": "user", "content": content}
    body = {"model": "bundled", "stream": True, "messages": [message], "max_tokens": MAX_TOKENS}
    begun, first = time.perf_counter(), 0.0
    for line in lines_of(json.dumps(body).encode()):  # to the end: the model is free for the next
        if line.startswith("data: ") and line != "data: [DONE]":
            delta = json.loads(line[6:])["choices"][0]["delta"]
            if delta.get("content") and not first:
                first = time.perf_counter() - begun
    if not first:
        raise SystemExit("there was no answer")
    return first


def by_httpx(client: httpx.Client, body: bytes) -> Iterator[str]:
    """Yield the lines of an answer as the clients of OpenAI receive them."""
    with client.stream("POST", PATH, content=body, headers=JSON) as response:
        yield from response.iter_lines()


def by_library(connection: http.client.HTTPConnection, body: bytes) -> Iterator[str]:
    """Yield the lines of an answer as Python's own library receives them."""
    connection.request("POST", PATH, body, JSON)
    for line in connection.getresponse():
        yield line.decode().rstrip("\n")


def ask(url: str, text: str, with_httpx: bool, pipe) -> None:
    """Be the client: answer each question of the pipe with its seconds, until there is none."""
    with httpx.Client(base_url=url, timeout=600) as client:
        file_id = client.post("/v1/files", files={"file": ("text.txt", text)}).json()["id"]
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=600)
        lines_of = partial(by_httpx, client) if with_httpx else partial(by_library, connection)
        while (question := pipe.recv()) is not None:
            pipe.send(served(lines_of, file_id, question))


@contextmanager
def server(app):
    """Yield the address of a server in a thread of this process."""
    running = uvicorn.Server(server_config(app))
    with listen("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=running.run, args=([bound],), daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        running.should_exit = True
        thread.join()


@contextmanager
def client(url: str, text: str, with_httpx: bool = False):
    """Yield a function that has a client ask a question and returns its seconds."""
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=ask, args=(url, text, with_httpx, theirs))
    process.start()

    def asked(question: str) -> float:
        ours.send(question)
        return ours.recv()

    yield asked
    ours.send(None)
    process.join()


def main() -> None:
    """Print the median of both, and of their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--httpx", action="store_true", help="the client uses httpx")
    args = parser.parse_args()
    llm = LongContextLLM.bundled()
    text = king_james()[: args.tokens * 3]
    app = create_app(llm, ServerSettings(model_name="bundled"))
    rng, times = random.Random(0), []
    questions = [f"What is the name of the river number {n}?" for n in range(args.pairs)]
    with server(app) as url, client(url, text, args.httpx) as over_http:
        for n in range(3):  # the first reads the document, and each way runs warm
            over_http(f"Who is number {n}?")
            reading = app.state.served.readings.get(Document.from_bytes(text.encode(), "text.txt"))
            direct(reading, f"Where is number {n}?")
        for question in questions:
            found = {}
            for way in rng.sample(("direct", "served"), 2):
                found[way] = direct(reading, question) if way == "direct" else over_http(question)
            times.append((found["direct"], found["served"]))
    straight, over = (statistics.median(x) * 1000 for x in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    print(
        f"{reading.plan.prompt_tokens} tokens read before, {args.pairs} pairs: first token after "
        f"{straight:.1f} ms directly, {over:.1f} ms served, median ratio {ratio:.3f}"
    )


if __name__ == "__main__":
    main()
