"""pytest-benchmark suites: pytest bench/suites (docs/bench/suites.md)."""
