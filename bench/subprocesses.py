"""A function in a process of its own: for peak memory, which only ever rises, and for a cold start.

    subprocesses.call("bench.decode:peak_bytes", "presto", options)

runs `python -m bench.subprocesses bench.decode:peak_bytes '["presto", {...}]'`, which prints the result as JSON in its
last line.  Arguments and result are what JSON holds.  Nothing heavy is imported here: an import may be what is timed.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class ChildError(RuntimeError):
    """The process did not end as it should; the message says how, and its last line."""


def call(function: str, *arguments: Any, environment: Mapping[str, str] | None = None) -> Any:
    """What `module:function` returns for these arguments in a new interpreter.

    Args:
        environment: variables put beside this process's own.

    Raises:
        ChildError: it raised, or it was killed, as it is where memory runs out.
    """
    variables = {**os.environ, **(environment or {})}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), variables.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "bench.subprocesses", function, json.dumps(arguments)],
        capture_output=True,
        text=True,
        env=variables,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it wrote nothing"]
        killed = f"killed by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else lines[-1]
        raise ChildError(f"{function}: {killed}")
    return json.loads(done.stdout.splitlines()[-1])


def main(function: str, arguments: str) -> None:
    module, name = function.split(":")
    result = getattr(importlib.import_module(module), name)(*json.loads(arguments))
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
