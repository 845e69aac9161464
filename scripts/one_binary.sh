#!/usr/bin/env bash
# One binary, every torch: builds one wheel (with CUDA objects where nvcc is found) and runs the CPU tests from it on
#   torch 2.13 CPU   the Python that made .venv
#   torch 2.11 CUDA  Python 3.12; a download of several gigabytes, hence a script of its own and not part of `make test`
# Usage: bash scripts/one_binary.sh [WORKDIR]      environments that are there already are used again.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=${1:-$root/build/one_binary}
py312=${PYTHON312:-python3.12}
mkdir -p "$work"

make --quiet .venv/.installed
rm -rf "$work/wheel"
.venv/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/wheel" .
wheel=$(ls "$work"/wheel/*.whl)
echo "built $(basename "$wheel"), $(du -h "$wheel" | cut -f1)"

if [ ! -e "$work/torch211/bin/python" ]; then "$py312" -m venv "$work/torch211"; fi
if [ ! -e "$work/torch213/bin/python" ]; then "${PYTHON:-python3}" -m venv "$work/torch213"; fi

status=0
for pair in torch213:2.13.0 torch211:2.11.0; do
  env=$work/${pair%%:*} torch=torch==${pair##*:}
  "$env/bin/python" -m pip install --quiet "$torch" numpy pytest pytest-timeout hypothesis
  "$env/bin/python" -m pip install --quiet --no-deps --force-reinstall "$wheel"
  echo "== $torch"
  # From a folder where the checkout's package is not on the path: what is tested is the wheel.
  rm -rf "$work/tests" && mkdir -p "$work/tests" && cp -r tests/presto_kernels "$work/tests/" && cp pyproject.toml "$work/"
  (cd "$work" && "$env/bin/python" -m presto_kernels.env_report &&
    "$env/bin/python" -c 'import presto_kernels, pathlib; assert "site-packages" in presto_kernels.__file__' &&
    "$env/bin/python" -m pytest -m "not slow" tests/presto_kernels/test_[abmrst]*.py) || status=1
done
exit $status
