"""How soon the web app's page is there, with all that it loads, idle and while the model reads.

python benchmarks/app_page.py [--rounds 10]
"""

import argparse
import re
import statistics
import subprocess
import sys
import threading
import time
from urllib.parse import urljoin

import httpx

from selfextend_rag.evals.prose import king_james

LINK = re.compile(r'(?:src|href)="([^"#:]+\.(?:js|css|svg))"')
IMPORT = re.compile(r'from "(\.{1,2}/[^"]+\.js)"')


def page(client: httpx.Client) -> float:
    """Return the seconds for the page, its modules and the first question of its script."""
    begun = time.perf_counter()
    got, wanted = set(), ["/app/"]
    while wanted:
        path = wanted.pop()
        if path in got:
            continue
        got.add(path)
        response = client.get(path)
        response.raise_for_status()
        links = IMPORT if path.endswith(".js") else LINK
        wanted += [urljoin(path, found) for found in links.findall(response.text)]
    client.get("/app/api/info").raise_for_status()
    assert len(got) > 3, got
    return time.perf_counter() - begun


def main() -> None:
    """Print both medians and the longest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    command = [sys.executable, "-m", "selfextend_rag", "app", "--no-browser", "--port", "0"]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().strip().removesuffix("/app/")
        print(f"started after {time.perf_counter() - begun:.1f} s")
        with httpx.Client(base_url=address, timeout=600) as client:
            print(f"first page {page(client):.3f} s")
            idle = [page(client) for _ in range(args.rounds)]
            file = ("text.txt", king_james()[:33_000])
            sent = client.post("/v1/files", files={"file": file}).json()["id"]
            reading = threading.Thread(
                target=client.post, args=("/app/api/read",), kwargs={"json": {"files": [sent]}}
            )
            reading.start()
            busy = []
            while reading.is_alive():
                busy.append(page(client))
            for name, times in (("idle", idle), ("while it reads", busy)):
                middle = statistics.median(times)
                print(
                    f"{name}: {len(times)} pages, median {middle:.3f} s, longest {max(times):.3f}"
                )
    finally:
        process.terminate()
        process.wait(60)


if __name__ == "__main__":
    main()
