#!/usr/bin/env bash
# Everything that needs a GPU, in calls that end in time:
#
#     bench/device.sh ours [seconds] [folder]    # build, products, correctness, our timings, variants, profiles, tests,
#                                                # memcheck: 480 s by default
#     bench/device.sh peers [seconds] [folder]   # scoring, the peers and the largest shapes: 300 s by default
#     bench/device.sh --exercise                 # the stages that run without a GPU, on the CPU with tiny shapes
#
# Stages come in order of importance; one that finds less than 15 s left is recorded as out of time. Logs, profiles and
# the samples, appended as they are taken, are in out/device. The folder (out by default) gets device.tar.gz with all of
# it after every stage, so that a killed call leaves it too, and <device>.json and the table. Nothing is fetched: peers in
# .whl/ are installed beside the machine's own packages, others are recorded as missing.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
call=${1:?expected ours, peers or --exercise}
case $call in
  ours) seconds=${2:-480} ;;
  peers) seconds=${2:-300} ;;
  --exercise) seconds=${2:-1500} ;;
  *) echo "expected ours, peers or --exercise, got $call" >&2 && exit 2 ;;
esac
[[ $seconds =~ ^[0-9]+$ ]] || { echo "seconds: expected a whole number, got $seconds" >&2 && exit 2; }
logs=$root/out/device
mkdir -p "$logs" "${3:-out}"
folder=$(cd "${3:-out}" && pwd)
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

left() { # seconds for the next step; the last ten are for its report
  echo $((seconds - SECONDS - 10))
}

note() { # name, exit status, seconds
  printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$logs/steps.tsv"
  echo "$1: $([[ $2 =~ ^[0-9]+$ ]] && echo "exit $2 after $3 s" || echo "$2")"
}

step() { # name, seconds, command: output to a log, exit status and time to steps.tsv; SIGINT lets tests report
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  ((limit > $(left))) && limit=$(left)
  ((limit < 15)) && note "$name" "out of time" 0 && return
  timeout -s INT -k 5 "$limit" "$@" >"$logs/$name.log" 2>&1
  note "$name" $? $((SECONDS - begin))
  tail -n 4 "$logs/$name.log"
}

measure() { # stage, seconds, options: one stage of bench.device; it begins no row in the last quarter of its time
  local stage=$1 limit=$2
  shift 2
  ((limit > $(left))) && limit=$(left)
  step "$stage" "$limit" "$python" -m bench device "$stage" --log "$samples" --seconds $((limit * 3 / 4)) "$@"
  pack
}

pack() {
  tar -czf "$folder/.device.tar.gz" -C "$root/out" device && mv "$folder/.device.tar.gz" "$folder/device.tar.gz"
}

report() { # takes seconds, because it imports torch
  "$python" -m bench device report "$logs"/samples-*.jsonl --steps "$logs" -o "$logs/$result" >"$logs/table.txt" 2>&1
  cp "$logs/table.txt" "$folder"
  [ -e "$logs/$result" ] && cp "$logs/$result" "$folder"
  pack
}

samples=$logs/samples-${call#--}.jsonl
rm -f "$samples" # samples of other code
if [ "$call" = --exercise ]; then
  result=cpu.json
  : >"$logs/steps.tsv"
  for stage in check time scoring peers variants profile; do
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
  measure scoring 80
  measure peers "$(left)"
  report
  cat "$logs/table.txt"
  exit
fi

: >"$logs/steps.tsv"
[ "$capability" = 9.0 ] && capability=9.0a
step build 150 env MAIN_KERNELS_CUDA=1 TORCH_CUDA_ARCH_LIST="$capability" "$python" setup.py build_ext --inplace &
build=$!
step products 50 "$python" -m bench device products --log "$samples"
wait $build
measure check 60
measure time 130
report
measure variants 80 --op info_nce token_logprobs
if command -v ncu >/dev/null; then # clocks are left as they are
  for op in info_nce token_logprobs linear_kl; do
    step "ncu-$op" 40 ncu --clock-control none --profile-from-start off --launch-count 12 --import-source no \
      --section SpeedOfLight --section ComputeWorkloadAnalysis --section MemoryWorkloadAnalysis \
      --section WarpStateStats --section LaunchStats --section Occupancy -f -o "$logs/$op" \
      "$python" -m bench device profile --log "$samples" --op "$op"
    [ -e "$logs/$op.ncu-rep" ] && ncu --import "$logs/$op.ncu-rep" --page details --csv >"$logs/ncu-$op.csv"
  done
else
  note ncu missing 0
fi
pack
parallel=()
"$python" -c "import xdist" 2>/dev/null && parallel=(-n 12 --dist worksteal)
# one thread per worker; the session ends in time to report
time=$(($(left) < 110 ? $(left) : 110))
step tests $time env OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 HF_HUB_OFFLINE=1 \
  "$python" -m pytest -q -p no:cacheprovider "${parallel[@]}" --junitxml "$logs/tests.xml" --durations 15 \
  --session-timeout $((time - 15)) -m "not slow" tests/kernels tests/cuda_cpp tests/device
pack
step sanitize 60 "$python" -m bench.sanitize # compiles what memcheck will run
if command -v compute-sanitizer >/dev/null; then
  # without torch's allocator, every tensor has its own bounds
  step memcheck "$(left)" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck \
    --error-exitcode 9 --target-processes all "$python" -m bench.sanitize
else
  note memcheck missing 0
fi
report
cat "$logs/table.txt"
