#!/usr/bin/env bash
# Everything that needs a GPU, in two calls of under nine minutes each:
#
#     bench/device.sh ours [folder]       # build, products, correctness, our timings, variants, profiles, tests, memcheck
#     bench/device.sh peers [folder]      # the peers and the largest shapes
#     bench/device.sh --exercise [folder] # the stages that run without a GPU, on the CPU with tiny shapes
#
# The folder is $OUT or out/device by default. Samples go to samples-ours.jsonl and samples-peers.jsonl there as they are
# taken, and a table and bench/results/<device>.json are made from them after every stage that measures. Nothing is
# fetched: peers in .whl/ are installed beside the machine's own packages, others are recorded as missing.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
call=${1:?expected ours, peers or --exercise}
logs=${2:-${OUT:-out/device}}
mkdir -p "$logs"
logs=$(cd "$logs" && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$root:$root/python" PYTHONUNBUFFERED=1
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True # large rows follow one another; no fragments between them

if compgen -G ".whl/*.whl" >/dev/null; then
  peers=$(mktemp -d)/site-packages # quack looks for its packages under this name
  "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$peers" .whl/*.whl &&
    PYTHONPATH="$PYTHONPATH:$peers"
  # a .pth file points to CuTe's DSL; Python reads those only in site folders
  compgen -G "$peers/*.pth" >/dev/null && echo "import site; site.addsitedir('$peers')" >"$peers/sitecustomize.py"
fi

step() { # name, seconds, command: output to a log, exit status and time to steps.tsv; SIGINT lets tests report
  local name=$1 seconds=$2 begin=$SECONDS status
  shift 2
  timeout -s INT -k 10 "$seconds" "$@" >"$logs/$name.log" 2>&1
  status=$?
  printf '%s\t%s\t%s\n' "$name" "$status" $((SECONDS - begin)) >>"$logs/steps.tsv"
  echo "$name: exit $status after $((SECONDS - begin)) s"
  tail -n 4 "$logs/$name.log"
}

measure() { # stage, seconds, options: one stage of bench.device, and the table so far
  local stage=$1 seconds=$2
  shift 2
  step "$stage" "$seconds" "$python" -m bench device "$stage" --log "$samples" "$@"
}

report() {
  "$python" -m bench device report "$logs"/samples-*.jsonl --steps "$logs" -o "$logs/$result" >"$logs/table.txt"
}

missing() {
  printf '%s\tmissing\t0\n' "$1" >>"$logs/steps.tsv"
  echo "$1: missing"
}

samples=$logs/samples-$call.jsonl
if [ "$call" = --exercise ]; then
  samples=$logs/samples-exercise.jsonl result=cpu.json
  : >"$logs/steps.tsv"
  for stage in check time peers variants profile; do
    measure $stage 300 --device cpu --smoke
  done
  step sanitize 120 "$python" -m bench.sanitize --device cpu
  report
  cat "$logs/table.txt"
  ! grep -qv $'\t0\t' "$logs/steps.tsv"
  exit
fi

name=$(nvidia-smi --query-gpu=name --format=csv,noheader --id=0) || exit 1
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader --id=0)
result=$(tr -cs 'a-z0-9\n' - <<<"${name,,}" | sed 's/-$//').json
nvidia-smi -q >"$logs/nvidia-smi.txt"

if [ "$call" = peers ]; then
  measure peers 500 --seconds 420
  report
  cat "$logs/table.txt"
  cp "$logs/$result" bench/results/
  exit
fi

: >"$logs/steps.tsv"
[ "$capability" = 9.0 ] && capability=9.0a
step build 150 env MAIN_KERNELS_CUDA=1 TORCH_CUDA_ARCH_LIST="$capability" "$python" setup.py build_ext --inplace &
build=$!
measure products 50
wait $build
measure check 60
measure time 130 --seconds 100
report
measure variants 80 --seconds 60 --op info_nce token_logprobs
report
if command -v ncu >/dev/null; then # clocks are left as they are
  for op in info_nce token_logprobs linear_kl; do
    step "ncu-$op" 40 ncu --clock-control none --profile-from-start off --launch-count 12 --import-source no \
      --section SpeedOfLight --section ComputeWorkloadAnalysis --section MemoryWorkloadAnalysis \
      --section WarpStateStats --section LaunchStats --section Occupancy -f -o "$logs/$op" \
      "$python" -m bench device profile --log "$samples" --op "$op"
    [ -e "$logs/$op.ncu-rep" ] && ncu --import "$logs/$op.ncu-rep" --page details --csv >"$logs/ncu-$op.csv"
  done
else
  missing ncu
fi
parallel=()
"$python" -c "import xdist" 2>/dev/null && parallel=(-n 12 --dist worksteal)
# one thread per worker; the session ends in time to report
step tests 110 env OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 HF_HUB_OFFLINE=1 \
  "$python" -m pytest -q -p no:cacheprovider "${parallel[@]}" --junitxml "$logs/tests.xml" --durations 15 \
  --session-timeout 95 -m "not slow" tests/kernels tests/cuda_cpp tests/device
step sanitize 60 "$python" -m bench.sanitize # compiles what memcheck will run
if command -v compute-sanitizer >/dev/null; then
  # without torch's allocator, every tensor has its own bounds
  left=$((520 - SECONDS))
  step memcheck $((left > 30 ? left : 30)) env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck \
    --error-exitcode 9 --target-processes all "$python" -m bench.sanitize
else
  missing memcheck
fi
report
cat "$logs/table.txt"
cp "$logs/$result" bench/results/
