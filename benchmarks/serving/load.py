"""A server under load: many clients, requests of random lengths, a third of them broken off.

    .venv/bin/python benchmarks/serving/load.py --minutes 5

First every request of a pool is answered alone. Then each client sends requests of the pool
for as long as asked, streaming or not, and closes the socket of one in three before its
answer is complete: at once, during the prompt or in the middle of the answer. The queue is
shorter than the number of clients, so some are turned away with 429. Everything is greedy:
a complete answer must be the one that the request got alone.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from checks import Figures, Server

from headgate.demo import demo_store
from headgate.engine import parse_size

PATH = "/v1/chat/completions"
TOPICS = ("Oslo", "Paris", "Lima", "Rome", "Madrid", "Havana", "Cairo", "Berlin")
WORDS = ("river", "lamp", "garden", "market", "winter", "stone", "paper", "letter", "mountain")
QUEUE, WAIT_S = 24, 0.5
#: The scheduler must notice within a token that nobody waits any more.
SETTLE_S = 5.0


@dataclass
class Load:
    """What clients do and see.

    Attributes:
        expected: the answers of the pool's requests, each alone.
        seen: outcomes.
        wrong: what must not happen.
    """

    url: str
    pool: list[dict[str, Any]]
    expected: list[str]
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.seen[what] += 1

    def fail(self, what: str) -> None:
        with self.lock:
            self.wrong.append(what)

    def client(self, seed: int, end: float) -> None:
        """Send requests until ``end``."""
        rng = random.Random(seed)
        with httpx.Client(base_url=self.url, timeout=300, trust_env=False) as client:
            while time.monotonic() < end:
                number = rng.randrange(len(self.pool))
                try:
                    if rng.random() < 1 / 3:
                        self._break_off(number, rng)
                    else:
                        self._complete(client, number, rng.random() < 0.5)
                except Exception as error:
                    self.fail(f"request {number}: {type(error).__name__}: {error}")

    def _complete(self, client: httpx.Client, number: int, stream: bool) -> None:
        status, answer = ask(client, self.pool[number], stream)
        if status == 429:
            self.count("turned away with 429")
            time.sleep(WAIT_S)
        elif status != 200:
            self.fail(f"request {number}: status {status}: {answer[:200]}")
        elif answer != self.expected[number]:
            self.fail(f"request {number}: another answer than alone: {answer[:200]}")
        else:
            self.count("completed, the answer as alone")

    def _break_off(self, number: int, rng: random.Random) -> None:
        parts = urlsplit(self.url)
        body = json.dumps({**self.pool[number], "stream": rng.random() < 0.8}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        how = rng.random()
        with socket.create_connection((parts.hostname or "", parts.port or 0), 60) as connection:
            if how < 0.1:  # before the request is complete
                connection.sendall(request[: rng.randrange(len(request))])
            else:
                connection.sendall(request)
                if how < 0.5:
                    time.sleep(rng.uniform(0, 1))
                else:
                    for _ in range(rng.randrange(1, 20)):
                        connection.settimeout(2)
                        try:
                            if not connection.recv(300):
                                break
                        except TimeoutError:
                            break
            if rng.random() < 0.5:  # with a reset instead of an orderly end
                linger = (1).to_bytes(4, sys.byteorder) + (0).to_bytes(4, sys.byteorder)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.count("broken off")


def ask(client: httpx.Client, body: dict[str, Any], stream: bool) -> tuple[int, str]:
    """(status, the answer with its reason for ending, or the body of an error)."""
    if not stream:
        response = client.post(PATH, json=body)
        if response.status_code != 200:
            return response.status_code, response.text
        (choice,) = response.json()["choices"]
        return 200, f"{choice['message']['content']} ({choice['finish_reason']})"
    text, reason, done = "", None, False
    with client.stream("POST", PATH, json={**body, "stream": True}) as response:
        if response.status_code != 200:
            return response.status_code, response.read().decode()
        for line in response.iter_lines():
            done |= line == "data: [DONE]"
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                return 500, line
            text += chunk["choices"][0]["delta"].get("content") or ""
            reason = chunk["choices"][0]["finish_reason"] or reason
    return (200, f"{text} ({reason})") if done else (0, "the stream ended early")


def requests(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Requests whose prompts and answers are short and long."""
    rng = random.Random(seed)
    pool = []
    for _ in range(count):
        words = " ".join(rng.choices(WORDS, k=int(2 ** rng.uniform(0, 9.5))))
        question = rng.choice(["Which country is {} in?", "Tell me a short story about {}."])
        messages = [{"role": "user", "content": question.format(rng.choice(TOPICS))}]
        if rng.random() < 0.7:
            messages.insert(0, {"role": "system", "content": words})
        tokens = int(2 ** rng.uniform(0, 7))
        endless = {"0": -100, "2": -100} if rng.random() < 0.3 else {}  # the stop tokens
        body = {"messages": messages, "max_tokens": tokens, "temperature": 0}
        pool.append({**body, "logit_bias": endless})
    return pool


def metric(client: httpx.Client, name: str) -> float:
    """A figure of ``/metrics``."""
    lines = client.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name + " ")))


def open_files(pid: int) -> int:
    """Open files of a process; 0 where the kernel does not say."""
    folder = Path(f"/proc/{pid}/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def settled(client: httpx.Client) -> bool:
    """Whether nothing is being answered any more, soon after everybody has gone."""
    end = time.monotonic() + SETTLE_S
    while metric(client, "headgate_answers_active") or metric(client, "headgate_requests_queued"):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--pool", type=int, default=48, help="different requests")
    parser.add_argument("--memory", default="210M", help="the server's budget (%(default)s)")
    args = parser.parse_args()
    figures, budget = Figures(), parse_size(args.memory)
    options = ["--memory", args.memory, "--queue", str(QUEUE)]
    with tempfile.TemporaryDirectory(prefix="headgate-load-") as folder:
        server = Server(demo_store(), options, Path(folder))
        with server, server.client() as client:
            pool = requests(args.pool)
            alone = [ask(client, body, False) for body in pool]
            if bad := [x for x in alone if x[0] != 200]:
                raise SystemExit(f"a request alone fails: {bad[0]}")
            load = Load(server.url, pool, [answer for _, answer in alone])
            files = open_files(server.pid)
            end = time.monotonic() + 60 * args.minutes
            threads = [
                threading.Thread(target=load.client, args=(seed, end))
                for seed in range(args.clients)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            quiet = settled(client)
            left = open_files(server.pid) - files
        for what, count in sorted(load.seen.items()):
            figures.tell(what, str(count))
        wrong = len(load.wrong)
        figures.check("other errors, other answers", str(wrong), "none", not wrong)
        peak = f"{server.peak_bytes / 1e6:.0f} MB"
        bar = f"<= {budget / 1e6:.0f} MB"
        figures.check("peak memory of the server", peak, bar, server.peak_bytes <= budget)
        figures.check("answers stop when nobody waits", "yes" if quiet else "no", "yes", quiet)
        figures.check("files left open", str(left), "<= 8", left <= 8)
        ended = server.status == 0 and server.notes[-1] == "headgate: stopped"
        figures.check("ends without a word", "yes" if ended else "no", "yes", ended)
        for text in [*load.wrong[:20], *server.notes]:
            print(text, file=sys.stderr)
    return figures.status


if __name__ == "__main__":
    sys.exit(main())
