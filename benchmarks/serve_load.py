"""Many clients at once on `selfextend-rag serve`: answers, memory, and what is left running.

    python benchmarks/serve_load.py [--clients 32] [--requests 300] [--runs 2]

Each request states a code of its own and asks for it, as a whole, as a stream, or as a stream that
the client leaves after its first event. The server runs in a process of its own.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter

import httpx
import psutil


def start() -> tuple[subprocess.Popen, str]:
    """Return a server and its address."""
    command = [sys.executable, "-m", "selfextend_rag", "serve", "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    printed = ""
    while not printed.endswith("}\n"):
        line = process.stdout.readline()
        if not line:
            raise SystemExit("the server did not start")
        printed += line
    return process, json.loads(printed)["address"]


async def one(client: httpx.AsyncClient, number: int, rng: random.Random) -> str:
    """Send one request and return how it ended: right, wrong, left, or an error."""
    value = "".join(random.Random(number).sample("123456789", 5))
    fact = f"The pass key is {value}. Remember it. {value} is the pass key."
    prompt = f"{fact}\n\nQuestion: What is the pass key?"
    body = {"model": "bundled", "messages": [{"role": "user", "content": prompt}]}
    kind = rng.choice(("whole", "stream", "leave"))
    while True:
        if kind == "whole":
            response = await client.post("/chat/completions", json=body)
            if response.status_code == 429:
                await asyncio.sleep(int(response.headers["Retry-After"]))
                continue
            text = response.json()["choices"][0]["message"]["content"]
            return "right" if text == value else f"wrong: {text} for {value}"
        async with client.stream("POST", "/chat/completions", json={**body, "stream": True}) as got:
            if got.status_code == 429:
                await asyncio.sleep(int(got.headers["Retry-After"]))
                continue
            text, done = "", False
            async for line in got.aiter_lines():
                if kind == "leave" and line:
                    return "left"
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
            return "right" if done and text == value else f"wrong: {text} for {value}"


async def run(address: str, clients: int, requests: int, seed: int) -> Counter:
    """Return how many requests ended in which way."""
    rng, ended, numbers = random.Random(seed), Counter(), iter(range(requests))

    async def work() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=600) as client:
            for number in numbers:
                ended[await one(client, number, rng)] += 1

    await asyncio.gather(*(work() for _ in range(clients)))
    return ended


def admitted(address: str) -> int:
    """Return the requests that the server counts as running or waiting."""
    text = httpx.get(f"{address.removesuffix('/v1')}/metrics").text
    (line,) = [x for x in text.splitlines() if x.startswith("selfextend_rag_requests_admitted ")]
    return int(float(line.split()[1]))


def main() -> None:
    """Load a server several times and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    process, address = start()
    memory = psutil.Process(process.pid)
    try:
        for run_number in range(1, args.runs + 1):
            begun = time.perf_counter()
            ended = asyncio.run(run(address, args.clients, args.requests, args.seed + run_number))
            seconds = time.perf_counter() - begun
            until = time.monotonic() + 30
            while admitted(address) and time.monotonic() < until:
                time.sleep(0.1)
            print(
                f"run {run_number}: {args.requests} requests of {args.clients} clients in "
                f"{seconds:.1f} s: {dict(ended)}; still admitted {admitted(address)}; "
                f"threads {memory.num_threads()}; memory {memory.memory_info().rss / 2**20:.0f} MiB"
            )
    finally:
        process.terminate()
        print(f"exit code after SIGTERM: {process.wait(60)}")


if __name__ == "__main__":
    main()
