"""Time to the first token through `serve` over `LongContextLLM` directly, the document read before.

    python benchmarks/serve_overhead.py [--pairs 40] [--tokens 8000]

Pairs of the same question, asked directly and over HTTP in one process, in changing order; the
ratio of each pair counts, and their median is printed.
"""

import argparse
import json
import random
import statistics
import threading
import time

import httpx
import uvicorn

from selfextend_rag.documents import Document
from selfextend_rag.evals.prose import king_james
from selfextend_rag.llm import LongContextLLM
from selfextend_rag.serve import ServerSettings, create_app


def direct(reading, question: str) -> float:
    """Return the seconds to the first text of an answer."""
    begun = time.perf_counter()
    with reading.stream(question, max_new_tokens=4) as stream:
        next(stream)
        return time.perf_counter() - begun


def served(client: httpx.Client, file_id: str, question: str) -> float:
    """Return the seconds to the first text of an answer over HTTP."""
    content = [
        {"type": "file", "file": {"file_id": file_id}},
        {"type": "text", "text": question},
    ]
    message = {"role": "user", "content": content}
    body = {"model": "bundled", "stream": True, "messages": [message], "max_tokens": 4}
    begun, first = time.perf_counter(), 0.0
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():  # to the end, so that the model is free for the next
            if line.startswith("data: ") and line != "data: [DONE]":
                delta = json.loads(line[6:])["choices"][0]["delta"]
                if delta.get("content") and not first:
                    first = time.perf_counter() - begun
    if not first:
        raise SystemExit("there was no answer")
    return first


def main() -> None:
    """Print the median of both, and of their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=8000)
    args = parser.parse_args()
    llm = LongContextLLM.bundled()
    text = king_james()[: args.tokens * 3]
    app = create_app(llm, ServerSettings(model_name="bundled"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    document = Document.from_bytes(text.encode(), "text.txt")
    rng, times = random.Random(0), []
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
        file_id = client.post("/v1/files", files={"file": ("text.txt", text)}).json()["id"]
        questions = [f"What is the name of the river number {n}?" for n in range(args.pairs + 2)]
        served(client, file_id, questions[-1])
        reading = app.state.served.readings.get(document)
        direct(reading, questions[-2])
        for question in questions[: args.pairs]:
            ways = [
                lambda q=question: direct(reading, q),
                lambda q=question: served(client, file_id, q),
            ]
            order = rng.sample((0, 1), 2)
            found = {way: ways[way]() for way in order}
            times.append((found[0], found[1]))
    server.should_exit = True
    thread.join()
    straight, over = (statistics.median(x) * 1000 for x in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    print(
        f"{reading.plan.prompt_tokens} tokens read before, {args.pairs} pairs: first token after "
        f"{straight:.1f} ms directly, {over:.1f} ms served, median ratio {ratio:.3f}"
    )


if __name__ == "__main__":
    main()
