"""The pages under docs/ops say what the code and the results say."""

import re

import pytest

from bench import docs
from bench.__main__ import main

PAGES = sorted(docs.PAGES.glob("*.md"))


def test_pages_are_up_to_date():
    assert main(["docs", "--check"]) == 0, "run python -m bench docs"


def test_every_family_has_a_page():
    families = {op.bucket.__module__.split(".")[-2] for op in docs.backends._OPS.values()}
    assert {page.stem for page in PAGES} == families


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_every_op_and_implementation(page):
    text = page.read_text()
    for name in docs.family_ops(page.stem):
        assert f"`{name}" in text
        for backend in docs.backends._OPS[name].backends:
            assert f"| `{name}` | {backend} |" in text


def test_a_mark_is_filled_once_and_filled_anew():
    once = docs.fill("# page\n\n<!-- backends -->\n\ntext\n", "modulation")
    assert once == docs.fill(once, "modulation")
    assert once.count("| `gated_residual` | triton | CUDA |") == 1 and once.endswith("\n\ntext\n")
    assert "D = 8193 (rows of 8193 elements are wider" in once


def test_a_stale_page_is_told_and_rewritten(tmp_path, monkeypatch):
    monkeypatch.setattr(docs, "PAGES", tmp_path)
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    page = tmp_path / "modulation.md"
    page.write_text("<!-- backends -->\n")
    assert main(["docs", "--check"]) == 1
    assert page.read_text() == "<!-- backends -->\n"
    assert main(["docs"]) == 0 and main(["docs", "--check"]) == 0
    assert re.search(r"\| `adaln_modulate` \| cpu \| CPU \|", page.read_text())
