"""The report: every kind of file has its section, text is text, nothing is fetched, and losses are not hidden."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import chromium
import pytest
from report_files import MAKERS, gate, meta, timed, write_all

from bench import results
from bench.__main__ import main
from bench.report import figures, history, markdown, source, verdict

RESULTS = Path(__file__).parents[2] / "bench" / "results"
OLD = sorted(RESULTS.glob("*-cpu.json"))
EVIL = '<script>alert("x")</script>$\\frac{1}{2}$ & font-family:"></svg>| `code`'
VOID = {"meta", "link", "br", "img", "hr", "input"}


@pytest.fixture
def files(tmp_path):
    return write_all(tmp_path)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The page and the summary of one file of each bench."""
    folder = tmp_path_factory.mktemp("each")
    return report(folder, *write_all(folder), artifact="https://example.org/runs/1")


@pytest.fixture(scope="module")
def reported_old(tmp_path_factory):
    return report(tmp_path_factory.mktemp("old"), *OLD)


def report(tmp_path, *paths, title="A title", artifact=None):
    """The page and the summary of these files."""
    html, text = tmp_path / "out.html", tmp_path / "out.md"
    arguments = ["report", *map(str, paths), "--html", str(html), "--markdown", str(text), "--title", title]
    assert main(arguments + (["--artifact", artifact] if artifact else [])) == 0
    return html.read_text(), text.read_text()


class Page(HTMLParser):
    """Well-formed HTML: every element is ended by its own end; ids differ; and what it holds."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.texts, self.figures = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attributes)

    def handle_startendtag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.links += [attributes[name] for name in ("href", "src", "srcset", "action", "data") if attributes.get(name)]
        if tag == "figure":
            self.figures.append([])
        if "figure" in self.open and tag == "svg":
            self.figures[-1].append(attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append((tuple(self.open), data))

    def text(self):
        return " ".join(" ".join(data for _, data in self.texts).split())


def test_every_kind_of_file_has_its_section(reported):
    html, text = reported
    page = Page(html)
    headings = [data for where, data in page.texts if where[-1:] == ("h2",)]
    assert headings[0] == "gate" and headings[-1] == "a bench of tomorrow"
    assert {make()[0] for make in MAKERS} == set(headings)
    assert page.tags.count("figure") == len(page.figures) == 8
    shown = page.text()
    for said in (
        "Prompt to waveform, stage by stage: 52.6 ms", "fast missed 22.0 52.6 H200 a readme", "throttled: power cap",
        "decode 1 900", "power w, max 690", "uncommitted changes", "Inside step 0, presto: 0.620 ms",
        "Furthest from its floor: qkv", "Predicted from datasheets, not measured", "H100 fp8 0.1 3350",
        "1.000 (0.900 to 1.100)", "1.20x (1.18 to 1.22)", "steps batch 1 1379 latents presto 1.00 GB 25 %",
        "row slower slower +5.0 % (+4.9 to +5.1) 0.001 4", "row same same +0.1 % (+0.0 to ?)",
        "Refused, not timed: 1", "5 warnings", "seam", "Another GPU",
    ):  # fmt: skip
        assert said in shown, said
    assert "| row inconclusive | inconclusive | +2.0 % (+1.9 to +2.1) |" in text  # no loss, whatever its interval says
    assert "| row slower | **slower** ❌ | **+5.0 % (+4.9 to +5.1)** ❌ |" in text


def test_each_figure_says_what_it_shows_and_takes_the_readers_colours(reported):
    html, _ = reported
    page = Page(html)
    for drawings in page.figures:
        (drawing,) = drawings
        assert drawing["role"] == "img" and drawing["aria-labelledby"] in page.ids
    titles = [data for where, data in page.texts if where[-2:] == ("svg", "title")]
    assert len(titles) == len(page.figures) and all(len(title) > 20 for title in titles)
    captions = [data for where, data in page.texts if where[-1:] == ("figcaption",)]
    assert len(captions) == len(page.figures) and all(captions)
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.S))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) == set()
    assert set(re.findall(r"var\(--(\w+)\)", drawn)) <= figures.COLORS.keys()
    style = html.split("<style>")[1].split("</style>")[0]
    for name in figures.COLORS:
        assert style.count(f"--{name}:") == 2, name  # light and dark


@pytest.mark.parametrize("which", ["reported", "reported_old"])
def test_nothing_is_fetched_and_nothing_runs(which, request):
    html, _ = request.getfixturevalue(which)
    page = Page(html)
    assert "script" not in page.tags and "iframe" not in page.tags and "img" not in page.tags
    assert all(link.startswith("#") or link == "data:," for link in page.links)
    assert "http://" not in html and "https://" not in html and "@import" not in html
    assert "default-src 'none'" in html


def test_what_a_file_says_is_text(tmp_path, files):
    told = json.loads(files[0].read_text())
    told["meta"]["device"] = EVIL
    told["meta"]["marks"] = [EVIL]
    for row in told["rows"]:
        row["stage"] = f"step {EVIL}" if row["stage"] == "step 0" else row["stage"]
    told["refused"] = [{"implementation": EVIL, "reason": EVIL}]
    files[0].write_text(json.dumps(told))
    html, text = report(tmp_path, *files[:1], title=EVIL)
    page = Page(html)
    assert "script" not in page.tags and "frac" not in page.tags
    assert page.text().count('<script>alert("x")</script>$\\frac{1}{2}$ &') >= 6
    assert "<script" not in text and "<script" not in html
    assert "\\| \\`code\\`" in text


def test_files_of_the_first_version(reported_old):
    html, text = reported_old
    page = Page(html)
    shown = page.text()
    assert all(path.name in shown for path in OLD)
    assert "AMD EPYC" in text and "| --- |" in text
    assert "Steps, layer schedule: 10596 ms" in shown and "busy: load average" in shown
    assert "A baseline is ahead in 1 of 30 cases" in shown
    assert "**0.83x (0.77 to 0.89)** ❌" in text


def test_every_table_of_figures_names_its_device(reported):
    html, text = reported
    for section in re.findall(r'<section id="s\d+">.*?</section>', html, re.S):
        assert re.search(r'<p class="about">(Some GPU|Another GPU|device not said) ', section)
    for section in text.split("\n### ")[1:]:
        assert section.split("\n\n")[1].startswith(("Some GPU", "Another GPU", "device not said"))


def test_the_summary_begins_with_the_verdict(tmp_path, files, reported):
    _, text = reported
    first = text.split("\n\n")[1].splitlines()
    assert first[0] == (
        "- ❌ gate against abcdef0: of 6 rows 1 slower, 1 gone, 1 inconclusive, 1 faster, 1 new, 1 the same (slower is "
        "more than 3 %), on Some GPU"
    )
    assert first[1] == "- ❌ targets on Some GPU: met: mono 230 ms; missed: fast 22 ms"
    assert "⚠️ throttled, on Some GPU: latency.json" in text
    assert "[The page](https://example.org/runs/1) has" in text
    assert "**0.80x (0.78 to 0.82)** ❌" in text and "~1.01x (0.99 to 1.03)" in text
    _, named = report(tmp_path, *files[-1:], artifact="javascript:alert(1)")
    assert "](" not in named and "javascript:alert(1)" in named


def test_without_a_slower_row_the_gate_is_good(tmp_path, files):
    told = json.loads(files[MAKERS.index(gate)].read_text())
    told["rows"] = told["rows"][:1]
    files[0].write_text(json.dumps(told))
    (found,) = verdict.first(source.read(files[:1]))[:1]
    assert found.tone == "good" and "of 1 rows 1 the same" in found.text
    told["summary"]["verdict"] = "stopped"
    files[0].write_text(json.dumps(told))
    (found,) = verdict.first(source.read(files[:1]))[:1]
    assert found.tone == "warn" and "stopped before its end" in found.text


def test_the_summary_is_never_too_long(tmp_path, files):
    told = json.loads(files[MAKERS.index(gate)].read_text())
    told["rows"] = [
        {"subject": f"{number} {'long ' * 90}", "verdict": "slower", "change": 0.1} for number in range(400)
    ]
    paths = []
    for number in range(30):
        paths.append(tmp_path / f"gate-{number}.json")
        paths[-1].write_text(json.dumps(told))
    _, text = report(tmp_path, *paths)
    assert 20_000 < len(text.encode()) < markdown.LIMIT
    assert "375 more rows in the page." in text
    assert "Left out for length, in the page: gate" in text


def runs(tmp_path, times, **settings):
    """Files of one bench on one machine, a day apart."""
    paths = []
    for day, milliseconds in enumerate(times, 1):
        told = meta(date=f"2026-11-{day:02}T00:00:00", settings={"config": "tiny", "seconds": 1.0} | settings)
        rows = [
            timed(milliseconds, op="snake", implementation="presto cpu"),
            timed(5.0, op="snake", implementation="eager"),
        ]
        path = tmp_path / f"run-{day}-{len(settings)}.json"
        results.Report(told, rows, bench="ops").save(path)
        paths.append(path)
    return paths


def test_runs_of_one_machine_make_a_history(tmp_path):
    paths = runs(tmp_path, [1.0, 1.1, 1.3])
    (section,) = history.sections(source.read(reversed(paths)))
    assert section.about == "Some GPU · 3 runs, 2026-11-01 to 2026-11-03"
    ours, others = section.blocks
    (row,) = ours.rows
    assert row[:3] == ("snake presto cpu", "1.00", "1.30") and (row[3].text, row[3].tone) == ("+30.0 %", "bad")
    assert others.folded and others.rows[0][3].text == "+0.0 %"
    assert row[5].drawing.count("<line") == 3 and "2026-11-02 0123456+: 1.10 ms (" in row[5].drawing
    html, text = report(tmp_path, *paths)
    assert Page(html).tags.count("polyline") == 2
    assert "No baseline is ahead" not in html  # none was compared
    assert "| snake presto cpu | 1.00 | 1.30 | **+30.0 %** ❌ | 3 |" in text


@pytest.mark.parametrize("other", [{"config": "presto-32s"}, {"steps": 8}])
def test_runs_of_other_settings_are_no_history(tmp_path, other):
    assert history.sections(source.read([*runs(tmp_path, [1.0]), *runs(tmp_path, [2.0], **other, x=0)])) == []


def test_runs_of_other_machines_are_no_history(tmp_path):
    one, two = runs(tmp_path, [1.0, 2.0])
    two.write_text(two.read_text().replace("Some GPU", "Another GPU"))
    assert history.sections(source.read([one, two])) == []


def test_what_cannot_be_reported_says_so(tmp_path, files):
    for arguments, said in (
        ([str(files[0])], "nothing was asked for"),
        ([str(tmp_path / "none.json"), "--html", "x.html"], "none.json: No such file"),
    ):
        with pytest.raises(SystemExit, match=re.escape(said)) as stopped:
            main(["report", *arguments])
        assert stopped.value.code == 2


@pytest.mark.slow
@pytest.mark.skipif(chromium.find() is None, reason="there is no Chromium")
def test_in_a_browser(tmp_path, files):
    html, _ = report(tmp_path, *files, RESULTS / "latency-cpu.json", RESULTS / "ops-families-cpu.json")
    path = tmp_path / "out.html"
    with chromium.Page(chromium.find()) as page:
        page.open(path, width=390)
        assert page.value("innerWidth") == 390
        assert page.value("document.documentElement.scrollWidth") <= 390
        wide = "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg')"
        assert page.value(f"{wide} && e.getBoundingClientRect().right > 390).map(e => e.tagName)") == []
        assert page.value("[...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth)")
        least = "Math.min(...[...document.querySelectorAll('figure text')].map(e => e.getBoundingClientRect().height))"
        assert page.value(least) >= 9  # readable: text of plots in CSS pixels
        light = page.value("getComputedStyle(document.body).backgroundColor")
        page.open(path, width=1200, dark=True)
        assert page.value("document.documentElement.scrollWidth") <= 1200
        assert page.value("getComputedStyle(document.body).backgroundColor") != light
        assert page.value("document.querySelectorAll('figure svg').length") == html.count("<figure>") > 10
        assert page.errors == []
        assert {request.split(":")[0] for request in page.requests} <= {"file", "data"}
        assert len({request for request in page.requests if request.startswith("file:")}) == 1
        # The error trap itself works: the page's own policy forbids what is put into it.
        page.value("document.body.append(Object.assign(new Image(), {src: 'https://example.org/x.png'}))")
        page.value("console.error('trapped')")
        assert any("trapped" in error for error in page.errors)
