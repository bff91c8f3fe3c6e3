"""vLLM's API server with the plugin under many clients: are the answers those in the process?

    python benchmarks/vllm_server.py [--clients 16] [--questions 200]

The server runs vLLM's CPU engine on the bundled model in float32; the clients are threads of
`LongContextLLM.connect`. Questions are about four documents of ``examples/documents``, in an order
that mixes them; each answer is compared with that of `LongContextLLM.bundled` with the same
settings. Needs vLLM and the extra ``remote``; see docs/vllm.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from selfextend_rag import Document, LongContextLLM
from selfextend_rag.bundled import FOLDER

DOCUMENTS = ("chronicles.txt", "elements.md", "genesis.txt", "numbers.txt")
SETTINGS = {"group_size": 16, "neighbor_window": 128}
HOW = {"max_new_tokens": 12}
STARTING = 900  # seconds


@contextmanager
def server(sequences: int) -> Iterator[str]:
    """Start vLLM's API server; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(FOLDER),
        "--served-model-name", "bundled", "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--max-num-seqs", str(sequences), "--enforce-eager",
        "--enable-prompt-tokens-details", "--additional-config",
        json.dumps({"selfextend": SETTINGS}),
    ]  # fmt: skip
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": str(max(os.sched_getaffinity(0))), **os.environ,
    }  # fmt: skip
    process = subprocess.Popen(command, env=environment)
    try:
        until = time.monotonic() + STARTING
        while time.monotonic() < until and process.poll() is None:
            try:
                urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except URLError:
                time.sleep(1)
        else:
            raise SystemExit("the server did not start")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--questions", type=int, default=200)
    given = parser.parse_args()
    folder = Path(__file__).parents[1] / "examples" / "documents"
    documents = [Document.from_file(folder / name) for name in DOCUMENTS]
    draw, asked = random.Random(0), []
    for number in range(given.questions):
        document = number % len(documents)
        words = [word for word in documents[document].text.split() if word.isalpha()]
        asked.append((document, f"What is said of {draw.choice(words)}?"))
    local = LongContextLLM.bundled(**SETTINGS)
    readings = [local.read(document) for document in documents]
    expected = [readings[document].ask(question, **HOW) for document, question in asked]
    with server(given.clients) as address:
        remote = LongContextLLM.connect(address, tokenizer=str(FOLDER), at_once=given.clients)
        theirs = [remote.read(document) for document in documents]
        begin = time.perf_counter()
        with ThreadPoolExecutor(given.clients) as pool:
            found = list(pool.map(lambda one: theirs[one[0]].ask(one[1], **HOW), asked))
        seconds = time.perf_counter() - begin
    different = [
        (question, ours.text, one.text)
        for (_, question), ours, one in zip(asked, expected, found, strict=True)
        if ours.text != one.text
    ]
    for question, ours, one in different[:10]:
        print(f"{question} here {ours!r}, there {one!r}")
    cached = sum(answer.usage.cached_tokens for answer in found)
    tokens = sum(answer.usage.prompt_tokens for answer in found)
    print(
        f"{given.clients} clients, {len(asked)} questions, {len(documents)} documents, {SETTINGS}: "
        f"{len(asked) - len(different)} answers equal, {cached} of {tokens} tokens of prompts "
        f"cached, {len({a.text for a in expected})} different answers, {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
