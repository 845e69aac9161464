#!/usr/bin/env bash
# Everything a CUDA machine can show, in one command of at most 9 minutes: bash bench/gpu_run.sh OUTDIR
#
# Needs Python with torch, triton, pytest, numpy and rich, nvcc, and no network. Builds, tests, benches and profiles, most
# valuable first. Each stage has its own time limit and writes its result as it comes; one that fails or runs out of time does
# not stop the next, and a stage for which no time is left is skipped by name. The last line sums up.
#
# PYTHON: the interpreter (python3). GPU_RUN_SECONDS: time for all stages (525).
# Exit status: 0 everything passed, 1 something did not, 2 there is no CUDA device and nothing was done.
set -u

if [ $# -ne 1 ]; then
    echo "usage: bash bench/gpu_run.sh OUTDIR" >&2
    exit 2
fi
python=${PYTHON:-python3}
case $python in
    */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;;
esac
total=${GPU_RUN_SECONDS:-525}
problem=$("$python" -c '
import sys, torch
if not torch.cuda.is_available():
    sys.exit("no CUDA device: this PyTorch (%s) sees none" % torch.__version__)
' 2>&1) || {
    echo "gpu_run: ${problem##*$'\n'}; nothing was done" >&2
    exit 2
}

mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
log=$out/log.txt
stages=$out/stages.txt
: >"$log"
: >"$stages"

# stage NAME LIMIT COMMAND...: runs the command within LIMIT seconds, or what is left of all; then a line in stages.txt.
stage() {
    local name=$1 limit=$2 left=$((total - SECONDS)) started=$SECONDS status verdict
    shift 2
    if [ "$left" -lt 20 ]; then
        echo "$name skipped (no time left) 0" >>"$stages"
        echo "gpu_run: $name skipped, no time left"
        return
    fi
    [ "$limit" -gt "$left" ] && limit=$left
    echo "=== $name: at most $limit s: $*" | tee -a "$log"
    # An interrupt first: the benches and pytest then write what they have.
    timeout --signal=INT --kill-after=10 "$limit" "$@" >>"$log" 2>&1
    status=$?
    case $status in
        0) verdict=ok ;;
        124 | 137) verdict="stopped at $limit s" ;;
        *) verdict="failed ($status)" ;;
    esac
    echo "$name $verdict $((SECONDS - started))" >>"$stages"
    echo "gpu_run: $name $verdict after $((SECONDS - started)) s"
}

stage build 170 "$python" setup.py build_ext --inplace
stage environment 30 "$python" -m presto_kernels.env_report
stage tests 160 "$python" -m pytest tests/gpu -p no:cacheprovider -o console_output_style=classic --junitxml="$out/tests.xml"
stage ops 60 "$python" -m bench ops --device cuda --backward --seconds 1 --rounds 60 \
    --ops gated_residual_adaln adaln_modulate gated_residual --shapes 2x1379x1024 --json "$out/ops.json"
stage attention 60 "$python" -m bench ops --device cuda --backward --seconds 1 --rounds 60 \
    --ops attention --shapes 1x1379x16x64 8x1379x16x64 --json "$out/ops-attention.json"
stage latency 150 "$python" -m bench latency --device cuda --config presto-32s --steps 4 --dtype bf16 --seconds 20 \
    --cold-runs 1 --json "$out/latency.json"
stage others 90 "$python" -m bench ops --device cuda --backward --seconds 0.5 --rounds 60 --first \
    --ops qk_norm_rope swiglu geglu snake edm_denoise renoise attention_cross --json "$out/ops-others.json"
stage tune 60 "$python" -m bench tune --device cuda --dtype bf16 --seconds 0.1 --folder "$out"
stage profile 75 "$python" -m bench steps --device cuda --config presto-32s --steps 4 --dtype bf16 --seconds 4 \
    --kernels "$out/kernels.txt" --trace "$out/trace.json" --json "$out/steps.json"
stage distill 70 "$python" -m bench distill --device cuda --config presto-32s --blocks 8 --methods presto-l presto-s --seconds 3 \
    --json "$out/distill.json"
stage ditto 60 "$python" -m bench ditto --device cuda --config presto-32s --dtype bf16 --audio 32 --no-memory --rounds 5 --seconds 4 \
    --json "$out/ditto.json"
stage kept 50 "$python" -m bench distill --kept --device cuda --config presto-32s --blocks 8 --batch 8 --seconds 5 \
    --json "$out/distill-kept.json"
stage ablate 50 "$python" -m bench ablate --device cuda --config presto-32s --dtype bf16 --seconds 5 --json "$out/ablate.json"

"$python" -m bench.gpu_summary "$out" "$SECONDS"
