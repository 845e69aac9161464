"""The command: reads the files, makes the sections, writes page and summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import schema, show
from bench.cli import BadOption, argument, option
from bench.report import history, sections, source, verdict
from bench.report.blocks import Table
from bench.report.markdown import markdown
from bench.report.page import page
from bench.report.source import Source, number, text
from presto_models.files import written_beside


@dataclass(frozen=True)
class ReportOptions:
    """Result files as one page that needs nothing else, and as a short summary for a pull request."""

    files: tuple[str, ...] = argument("result files of any version, of any bench and device")
    html: str | None = option(None, "write the page to this file")
    markdown: str | None = option(None, "write the summary to this file, less than 60 kB")
    title: str = option("Presto bench", "what it is called")
    artifact: str | None = option(None, "where readers of the summary find the page: an address, or a name in words")


def run(options: ReportOptions) -> int:
    """Writes what was asked for. Exit status 2 where a file is no result file, or nothing was asked for."""
    if options.html is None and options.markdown is None:
        raise BadOption("--html FILE or --markdown FILE: nothing was asked for")
    try:
        sources = source.read(options.files)
        with show.stage(f"{len(sources)} files"):
            made = [*sections.sections(sources), *history.sections(sources)]
    except (schema.ResultError, ImportError) as error:
        raise BadOption(str(error)) from error
    first, marks = verdict.first(sources), verdict.marks(sources)
    if options.html is not None:
        _write(options.html, page(options.title, first, marks, files_table(sources), made))
    if options.markdown is not None:
        _write(options.markdown, markdown(options.title, first, marks, made, options.artifact))
    return 0


def files_table(sources: Sequence[Source]) -> Table:
    """Which file comes from which machine and commit."""
    columns: tuple[str, ...] = (
        "file",
        "bench",
        "device",
        "commit",
        "date",
        "threads",
        "torch",
        "driver",
        "clocks",
        "copy GB/s",
    )
    columns += ("matmul TFLOP/s", "version")
    rows = []
    for each in sources:
        ceilings = each.meta.get("ceilings")
        products = ceilings.get("matmul_tflops") if isinstance(ceilings, dict) else None
        names = products if isinstance(products, dict) else {}
        rates = ", ".join(f"{name} {show.number(number(names, name)) or '-'}" for name in names)
        date = each.date and each.date[:16].replace("T", " ")
        told = (text(each.meta.get(name)) for name in ("threads", "torch", "driver", "clocks"))
        copy = show.number(number(ceilings, "copy_gbs"))
        rows.append(
            (each.name, each.bench, each.device, each.commit, date, *told, copy, rates or None, str(each.version))
        )
    return Table("Files and machines", columns, rows, left=3)


def _write(path: str, content: str) -> None:
    with written_beside(Path(path)) as beside:
        beside.write_text(content)
    show.console.print(f"{path}: {len(content.encode()) / 1e3:.0f} kB", markup=False, soft_wrap=True)
