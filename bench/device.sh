#!/usr/bin/env bash
# All checks that need a GPU, in under nine minutes: builds the extension for this machine's Python, runs the library's
# tests on the GPU and every kernel under compute-sanitizer, and times the ops against bare products and the peers.
#
#     bench/device.sh [folder for logs]          # default: $OUT where it is set, else out/device
#
# The results go to bench/results/<device>.json, with a copy in the folder. Nothing is downloaded: wheels in .whl/ are
# installed next to the machine's own packages, other peers are recorded as missing. See docs/gpu.md.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
logs=${1:-${OUT:-out/device}}
mkdir -p "$logs"
python=${PYTHON:-python3}
export PYTHONPATH="$root:$root/python" PYTHONUNBUFFERED=1
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True # large rows follow one another; no fragments between them

if compgen -G ".whl/*.whl" >/dev/null; then
  peers=$(mktemp -d)/site-packages # by this name quack knows what is installed
  "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$peers" .whl/*.whl &&
    PYTHONPATH="$PYTHONPATH:$peers"
  # CuTe's DSL lies where a .pth says, and these are read in the folders of sites only
  compgen -G "$peers/*.pth" >/dev/null && echo "import site; site.addsitedir('$peers')" >"$peers/sitecustomize.py"
fi

step() { # name, seconds, command: its output to a log, its exit status and time to steps.tsv; interrupted, tests report
  local name=$1 seconds=$2 begin=$SECONDS status
  shift 2
  timeout -s INT -k 10 "$seconds" "$@" >"$logs/$name.log" 2>&1
  status=$?
  printf '%s\t%s\t%s\n' "$name" "$status" $((SECONDS - begin)) >>"$logs/steps.tsv"
  echo "$name: exit $status after $((SECONDS - begin)) s"
  tail -n 4 "$logs/$name.log"
}

# Limits: 120 to build, 215 for the tests, 75 for the sanitizers, and the timings have what is left of 520.
: >"$logs/steps.tsv"
begun=$(mktemp)
step build 120 env MAIN_KERNELS_CUDA=1 "$python" setup.py build_ext --inplace
parallel=()
"$python" -c "import xdist" 2>/dev/null && parallel=(-n 12 --dist worksteal)
# while the tests run: what the sanitizers will watch, without them, so that they find Triton's kernels compiled
step sanitize 150 "$python" -m bench.sanitize &
# one thread a worker; the session ends in time to say what it has seen
step tests 215 env OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 HF_HUB_OFFLINE=1 \
  "$python" -m pytest -q -p no:cacheprovider "${parallel[@]}" --junitxml "$logs/tests.xml" --durations 15 \
  --session-timeout 180 -m "not slow" tests/kernels tests/cuda_cpp tests/device tests/align
wait
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    # without torch's allocator between, every tensor has bounds of its own
    step "$tool" 75 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      --target-processes all "$python" -m bench.sanitize &
  done
  wait
else
  printf 'memcheck\tmissing\t0\nracecheck\tmissing\t0\n' >>"$logs/steps.tsv"
fi
left=$((520 - SECONDS)) # of nine minutes, some kept for writing
step timings "$left" "$python" -m bench.device --logs "$logs" \
  --minutes "$(awk "BEGIN { print $left * 0.7 / 60 }")"
cat "$logs/timings.log"
find bench/results -name '*.json' -newer "$begun" -exec cp {} "$logs/" \;
grep -q '^build.0' "$logs/steps.tsv" && rm "$logs/build.log" # of what is of use, eight files
