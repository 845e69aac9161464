"""Another commit's packages, built, in a folder of its own that later runs find again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench import show

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".bench"
"""Where baselines are kept; ignored by git, safe to delete."""
PACKAGES = ("presto_kernels", "presto_models")
BUILT_FROM = ("csrc", "setup.py", "pyproject.toml")


class CheckoutError(RuntimeError):
    """A baseline that is not to be had: no such commit, or it does not build."""


def baseline(ref: str) -> tuple[Path, str]:
    """The folder of a commit's packages and the commit's full name.

    The compiled library is this checkout's own where nothing it is built from differs, else built there.

    Raises:
        CheckoutError: no such commit here (a shallow clone has but one), or it does not build.
    """
    commit = _git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if commit is None:
        raise CheckoutError(f"--baseline: no file and no commit {ref!r} here; a shallow clone holds only the newest")
    folder = FOLDER / commit
    if not folder.exists():
        beside = FOLDER / f"{commit}.{os.getpid()}"
        with show.stage(f"checking out {commit[:12]}"):
            beside.mkdir(parents=True)
            archive = subprocess.run(["git", "-C", ROOT, "archive", commit], capture_output=True, check=True)
            subprocess.run(["tar", "-x", "-C", beside], input=archive.stdout, check=True)
        _build(beside, commit)
        beside.rename(folder)
    return folder, commit


def _build(folder: Path, commit: str) -> None:
    ours = sorted((ROOT / "presto_kernels").glob("_C*.so"))
    if not ours:
        return  # this checkout runs without compiled kernels, so the baseline does
    if _git("diff", "--quiet", commit, "--", *BUILT_FROM) is not None:
        for library in ours:
            shutil.copy2(library, folder / "presto_kernels" / library.name)
        return
    with show.stage(f"building {commit[:12]}"):
        done = subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=folder,
            env=os.environ | {"PRESTO_BUILD": "1"},
            capture_output=True,
            text=True,
        )
    if done.returncode or not list((folder / "presto_kernels").glob("_C*.so")):
        lines = (done.stdout + done.stderr).strip().splitlines()[-5:]
        shutil.rmtree(folder)
        raise CheckoutError(f"{commit[:12]} does not build:\n" + "\n".join(lines))


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
