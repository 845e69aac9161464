"""One side of a paired measurement: a process that holds one commit's packages and times what it is told.

A request is a line of JSON on standard input, the reply a line on what was standard output:

    {"do": "prepare", "key": K, "seed": S, "check": true}   builds the row K; replies {"ms": one call} or {"error": why}
    {"do": "time", "key": K, "repeats": N}                  one call untimed, then N; replies {"ms": each of the N}
    {"do": "drop", "key": K}                                forgets it

Started by pair.py with the packages under test in front on the path; the bench is always the caller's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from bench import machine
from bench.gate import subjects

Timer = Callable[[int], list[float]]


class Worker:
    """The rows that are ready, by key."""

    def __init__(self, device: torch.device, slow: dict[str, float]) -> None:
        self.device, self.slow = device, slow
        self.timers: dict[str, Timer] = {}

    def prepare(self, key: str, seed: int, check: bool) -> float:
        subject = subjects.find(key, self.device)
        if check:
            subject.check()
        self.timers[key] = subjects.timer(subject.make(seed), self.device, subject.grad, self.slow.get(key, 0.0))
        return min(self.timers[key](2))

    def time(self, key: str, repeats: int) -> list[float]:
        return self.timers[key](repeats)

    def drop(self, key: str) -> float:
        self.timers.pop(key, None)
        return 0.0


def main() -> None:
    """Serves requests until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not stand between the replies
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    worker = Worker(machine.pick_device(settings["device"]), settings["slow"])
    replies.write("{}\n")
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        try:
            reply: dict[str, Any] = {"ms": getattr(worker, request.pop("do"))(**request)}
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            reply = {"error": f"{type(error).__name__}: {first}"}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
