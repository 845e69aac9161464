"""What a search holds: its peak in a process of its own, and what autograd keeps, counted, against the walk's steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table

from bench import show, subprocesses
from bench.cli import BadOption
from bench.ditto_tasks import CHECKED_LATENTS, DITTO, Sizes, Task, restart
from bench.meter import Meter, give_back
from bench.names import PRESTO, REFERENCE
from bench.results import Report, Row
from bench.saved import saved_bytes

CHECKPOINTED, KEPT = "checkpointed", "kept"
SPARE = 0.7  # of the memory that is there: what a case may need; the rest is for what others start meanwhile
BEYOND_SAVED = 1.5  # a step holds gradients beside what is saved for them


@dataclass(frozen=True)
class Case:
    """One search; plain values, so that a process of its own can be told.  ``steps``: of the walk; None: the task's."""

    method: str
    implementation: str
    steps: int | None = None
    checkpointed: bool = True


def measure(case: dict[str, Any], sizes: dict[str, Any]) -> dict[str, int]:
    """Bytes of a :class:`Case`.

    ``peak_bytes``: the most that a step holds beyond the weights, and what is computed before the first.
    ``saved_bytes``: what the walk has saved for its backward pass when it is over.  ``call_bytes``: what one call of
    the network saves, the one of most blocks.  ``latent_bytes``: x.  ``decoder_bytes``: what decoder and control save.
    """
    wanted, task = Case(**case), Task(case["method"], Sizes(**sizes))
    task = task if wanted.steps is None else task.changed(steps=wanted.steps)
    name, cuda = wanted.implementation, task.noise.device.type == "cuda"
    task.changed(latents=CHECKED_LATENTS, steps=1).search(name, eager=True).step()  # loads libraries and their kernels
    give_back()
    measured = Meter(task.noise.device)
    before = measured.held()
    measured.reset()
    search = task.search(name, checkpointed=wanted.checkpointed)
    for _ in range(3 if cuda else 1):  # on CUDA the third is captured
        restart(search)
        search.step()
    found = {"peak_bytes": measured.peak() - before}
    found["saved_bytes"] = saved_bytes(lambda: search.walk(search.noise))
    x = search.noise.detach().requires_grad_()
    found["call_bytes"] = max(saved_bytes(call) for call in _calls(task, name, x))
    found["latent_bytes"] = x.nbytes
    found["decoder_bytes"] = saved_bytes(lambda: search.errors(x))
    return found


def _calls(task: Task, name: str, x: torch.Tensor) -> list[Callable[[], torch.Tensor]]:
    """One call of the network for every number of blocks that the walk runs."""
    walk, plan = task.walk(name, checkpointed=False), task.plan
    levels, targets = plan.sampling.levels, plan.sampling.targets
    jumps = [(level,) for level in levels] if targets is None else list(zip(levels, targets, strict=True))
    budget = (lambda level: 0) if plan.schedule is None else plan.schedule.budget
    different = {budget(jump[0]): jump for jump in jumps}
    return [lambda jump=jump: walk.call(x, *jump) for jump in different.values()]  # type: ignore[misc]


def peaks(method: str, sizes: Sizes, report: Report) -> dict[str, int]:
    """Peak bytes of a step of each side, each in a process of its own so that neither inherits the other's."""
    found = {}
    for name in (REFERENCE, PRESTO):
        with show.stage(f"{method}: peak memory of {name}"):
            try:
                found[name] = _measured(Case(method, name), sizes)["peak_bytes"]
            except subprocesses.ChildError as error:
                report.refuse(error, method=method, stage="memory", implementation=name)
    return found


def _measured(case: Case, sizes: Sizes) -> dict[str, int]:
    return subprocesses.call("bench.ditto_memory:measure", asdict(case), asdict(sizes))


def curve(report: Report, sizes: Sizes, walks: tuple[int, ...], json: str | None) -> None:
    """Rows of DITTO's search against the steps of its walk, with a checkpoint a call and with every activation kept."""
    if not walks or min(walks) < 1:
        raise BadOption(f"--walks: {' '.join(map(str, walks))}; must be at least 1")
    cases = [Case(DITTO, PRESTO, steps, kept) for steps in sorted(set(walks)) for kept in (True, False)]
    last: dict[str, int] = {}
    with show.rounds(f"{len(cases)} processes") as on_progress:
        for index, case in enumerate(cases):
            variant = CHECKPOINTED if case.checkpointed else KEPT
            what: Row = {"method": DITTO, "stage": "memory", "variant": variant, "axis": "sampling_steps"}
            what |= {"value": case.steps, "implementation": PRESTO}
            try:
                if not case.checkpointed and last:
                    _check_room(case, last, Meter(torch.device(sizes.device)).available())
                found = _measured(case, sizes)
            except (subprocesses.ChildError, MemoryError) as error:
                report.refuse(error, **what)
            else:
                last = found
                report.rows.append(what | found | _derived(case, found))
            report.summary["curve"] = _summary(report)
            report.save(json)
            on_progress((index + 1) / len(cases))


def _derived(case: Case, found: dict[str, int]) -> dict[str, int]:
    """``walk_bytes``: the most that the walk keeps at once.  ``line_bytes``: of one model call, and T latents."""
    assert case.steps is not None
    again = found["call_bytes"] if case.checkpointed else 0  # recomputed while the backward pass is there
    return {
        "walk_bytes": found["saved_bytes"] + again,
        "line_bytes": found["call_bytes"] + case.steps * found["latent_bytes"],
    }


def _check_room(case: Case, found: dict[str, int], available: int | None) -> None:
    """MemoryError where every activation of this walk would not fit: a process that is killed may take others along."""
    assert case.steps is not None
    need = BEYOND_SAVED * (case.steps * found["call_bytes"] + found["decoder_bytes"])
    if available is not None and need > SPARE * available:
        raise MemoryError(f"needs about {need / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free")


def _summary(report: Report) -> dict[str, Any]:
    """How much more the longest walk takes than the shortest, both ways."""
    found: dict[str, Any] = {}
    for variant in (CHECKPOINTED, KEPT):
        rows = [row for row in report.rows if row["variant"] == variant]
        if len(rows) > 1:
            first, last = rows[0], rows[-1]
            found[variant] = {
                "steps": [first["value"], last["value"]],
                "walk_bytes": [first["walk_bytes"], last["walk_bytes"]],
                "peak_bytes": [first["peak_bytes"], last["peak_bytes"]],
            }
    return found


def curve_table(report: Report) -> Table:
    columns = ("T", "activations", "walk keeps MB", "one call + T latents", "decoder keeps MB", "peak MB")
    names = ("walk_bytes", "line_bytes", "decoder_bytes", "peak_bytes")
    cells = [(row["value"], row["variant"], *(show.number(row[name] / 1e6) for name in names)) for row in report.rows]
    return show.table("what DITTO's search holds, against T, the steps of its walk", columns, cells, left=2)
