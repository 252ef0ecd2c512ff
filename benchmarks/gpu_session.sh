#!/usr/bin/env bash
# Measures everything on a machine with a GPU: see docs/gpu_session.md.
#
#     benchmarks/gpu_session.sh [OPTION ...] [PART ...]
#
# Parts, all of them unless some are named:
#     environment  what is on the machine, and what is missing for which part
#     build        the kernels, for this GPU
#     contract     tests/ops on each backend, and tests/triton
#     sanitize     compute-sanitizer: memcheck, racecheck, initcheck
#     kernels      every operator against PyTorch
#     step         a training step with and without the kernels
#     train        a short training run
#
# Options:
#     --dry-run          rehearse every part on the CPU, with tiny sizes
#     --out DIR          where gpu_PART.json and gpu_PART.log go; otherwise $OUT, then
#                        benchmarks/results; a rehearsal goes to a temporary folder
#     --again            do parts that have passed once more
#     --backends LIST    of contract, sanitize and kernels: cuda,triton unless told
#     --data DIR         train: a folder with two domains, *source and *target
#     --limit SECONDS    for the whole call: parts get less time, or are not begun
#     --help
#
# A part that has passed, with the same sources and GPU, is skipped; one that fails does not stop
# the others. Exit status: 0 all passed, 1 a part failed, 2 wrong usage, 3 a part could not be done.
# PYTHON names the interpreter (python3).
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname -- "$here")
readonly here root
readonly all_parts=(environment build contract sanitize kernels step train)
readonly part_limit=540  # seconds

usage() { sed -n '2,/^set -euo/{/^set -euo/d; s/^# \{0,1\}//; p}' "${BASH_SOURCE[0]}"; }

die() {
  echo "gpu_session.sh: $*" >&2
  exit 2
}

# ---- options ------------------------------------------------------------------------------------
dry_run=${SESSION_DRY_RUN:-}  # empty: no
out=${SESSION_OUT:-}
backends=${SESSION_BACKENDS:-cuda,triton}
data=${SESSION_DATA:-}
again='' limit='' inside='' parts=()
python=${PYTHON:-python3}
while (($#)); do
  case $1 in
    --dry-run) dry_run=1 ;;
    --again) again=1 ;;
    --out | --backends | --data | --limit | --inside)
      (($# > 1)) || die "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --help | -h)
      usage
      exit 0
      ;;
    -*) die "there is no option $1 (see --help)" ;;
    *)
      [[ " ${all_parts[*]} " == *" $1 "* ]] || die "there is no part '$1'; parts: ${all_parts[*]}"
      parts+=("$1")
      ;;
  esac
  shift
done
((${#parts[@]})) || parts=("${all_parts[@]}")
[[ $limit =~ ^[0-9]*$ ]] || die "--limit is '$limit'; it needs whole seconds"
[[ -z $data || -d $data ]] || die "--data is $data; there is no such folder"
command -v "$python" > /dev/null || die "there is no $python; set PYTHON"

if [[ -n $dry_run ]]; then
  [[ -n $out ]] || out=$(mktemp -d -t gpu_rehearsal.XXXXXX)
  [[ $(realpath -m -- "$out") != "$root/benchmarks/results"* ]] ||
    die "a rehearsal does not go to benchmarks/results, where real results lie"
  if grep -qs '"dry_run": false' "$out"/gpu_*.json; then
    die "$out holds real results; a rehearsal goes elsewhere"
  fi
  backends=cpu
else
  out=${out:-${OUT:-$root/benchmarks/results}}
fi
mkdir -p -- "$out"
out=$(realpath -- "$out")
work=$root/build/gpu_session${dry_run:+_rehearsal}  # not under version control
mkdir -p -- "$work"
IFS=, read -ra backend_list <<< "$backends"

report() {  # COMMAND ARGUMENT ...
  "$python" "$here/gpu_summary.py" "$@" --folder "$out" ${dry_run:+--dry-run}
}

# The checkout's package, with the kernels that `build` left in a folder, if it did.
export PYTHONUNBUFFERED=1
# Whoever rehearses has other work on the machine, and threads that wait for each other then crawl.
if [[ -n $dry_run ]]; then export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}; fi
use_build() {
  local path=$root
  if compgen -G "$work/cmake/_cscl_fast*.so" > /dev/null; then path+=:$work/cmake; fi
  export PYTHONPATH=$path${outer_path:+:$outer_path}
}
outer_path=${SESSION_PATH-${PYTHONPATH:-}}
use_build

# ---- the parts; each runs in a process of its own, under a time limit ---------------------------
missing() {  # REASON: something that the part needs is not here
  echo "not possible here: $*"
  echo "$*" > "$work/why"
  exit 3
}

seconds_left() { echo $((SESSION_END - $(date +%s))); }

find_program() {  # NAME: on PATH, beside Python, or inside the Python package of that name
  local found
  found=$(command -v "$1") || found=$(dirname -- "$(command -v "$python")")/$1
  if [[ ! -x $found ]]; then
    found=$("$python" - "$1" 2> /dev/null << 'END' || true
import importlib, pathlib, sys
name = sys.argv[1]
module = importlib.import_module(name)
folder = getattr(module, f"{name.upper()}_BIN_DIR", getattr(module, "BIN_DIR", ""))
print(pathlib.Path(folder) / name)
END
    )
  fi
  [[ -x $found ]] && echo "$found"
}

part_environment() {
  local programs=() name
  for name in cmake ninja nvcc nvidia-smi compute-sanitizer ncu; do
    if find_program "$name" > /dev/null; then programs+=("$name"); fi
  done
  report environment --programs "${programs[@]}"
  "$python" -c 'import torch' || missing "PyTorch cannot be imported by $python"
  "$python" -m cscl_fast.info
  if [[ -n $dry_run ]]; then return; fi
  "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
    missing "PyTorch finds no GPU"
}

build_with_cmake() {
  local cmake ninja
  cmake=$(find_program cmake) || missing "cmake is neither on PATH nor a package of $python"
  ninja=$(find_program ninja) || missing "ninja is neither on PATH nor a package of $python"
  # PyTorch has pybind11's headers, but not the CMake files that build a module with them.
  "$python" -m pybind11 --cmakedir || [[ -n ${pybind11_DIR:-} ]] ||
    missing "pybind11 is not installed (the headers inside PyTorch are not enough)"
  "$cmake" -S "$root" -B "$work/cmake" -G Ninja --fresh -DCMAKE_MAKE_PROGRAM="$ninja" \
    -DPython_EXECUTABLE="$(command -v "$python")" ${pybind11_DIR:+-Dpybind11_DIR="$pybind11_DIR"}
  "$cmake" --build "$work/cmake"
}

part_build() {
  local capability
  export MAX_JOBS=${MAX_JOBS:-$(nproc)}
  if [[ -n $dry_run ]]; then
    CSCL_FAST_CUDA=0 CSCL_FAST_NATIVE=1 build_with_cmake  # one instruction set: a third of the time
  else
    if ! command -v nvcc > /dev/null && [[ -z ${CUDACXX:-} ]]; then
      missing "there is no nvcc on PATH: no CUDA kernels"
    fi
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
    export CSCL_FAST_CUDA=1 CMAKE_CUDA_ARCHITECTURES=${CMAKE_CUDA_ARCHITECTURES:-$capability-real}
    rm -rf -- "$work/cmake"  # an earlier build there would hide what pip installs
    # Looked for, not imported: setuptools refuses to come after pip.
    if ! { "$python" -c 'import importlib.util as u, sys
sys.exit(not all(map(u.find_spec, ("pip", "setuptools", "pybind11"))))' &&
      "$python" -m pip install -v --no-build-isolation --no-deps -e "$root"; }; then
      echo "pip could not: plain CMake instead"
      build_with_cmake
    fi
  fi
  use_build
  "$python" -m cscl_fast.info
  built || { echo "the library was built and cannot be used"; return 1; }
}

built() {  # whether the compiled kernels can be used
  "$python" - "${backend_list[@]}" << 'END'
import sys
from cscl_fast import backends
compiled = [name for name in sys.argv[1:] if name != "triton"] or ["cpu"]
sys.exit(0 if all(name in backends.available() for name in compiled) else 1)
END
}

why_unavailable() {  # BACKEND: prints why, or nothing
  "$python" -c 'import sys; from cscl_fast import backends
print(backends.why_unavailable(sys.argv[1]) or "")' "$1"
}

worse() {  # CODE CODE: of two exit statuses, a failure before what is not possible here
  if (($1 == 0 || ($1 == 3 && $2 != 0))); then echo "$2"; else echo "$1"; fi
}

test_run() {  # NAME BACKEND RUNS_LEFT PYTEST_ARGUMENT ...
  local name=$1 backend=$2 share code=0 began=$SECONDS options=() xml why
  share=$((($(seconds_left) - 20) / $3))
  shift 3
  xml=$work/tests_${name//\//_}.xml
  if report run-passed contract "$name"; then
    echo "$name has passed before"
    return 0
  fi
  why=$(why_unavailable "$backend")
  if [[ -n $why ]]; then
    report tests contract "$name" --why "$why"
    return
  fi
  "$python" -c 'import pytest_timeout' 2> /dev/null ||
    options+=(-o "addopts=-ra -m 'not large'")  # without the check of the options it brings
  if [[ -z $dry_run ]] && "$python" -c 'import xdist' 2> /dev/null; then options+=(-n 6); fi
  # The contract's tests must name the backend; the backend's own tests choose it themselves.
  local chosen=$backend proof=$backend
  if [[ $name != ops/* ]]; then chosen=auto proof=''; fi
  rm -f -- "$xml"
  # Interrupted, not ended: pytest then still writes what it has.
  timeout --signal=INT --kill-after=15 "$share" env CSCL_FAST_BACKEND="$chosen" \
    "$python" -m pytest -q -p no:cacheprovider --junitxml="$xml" "${options[@]}" "$@" || code=$?
  report tests contract "$name" --backend "$proof" --file "$xml" --code "$code" \
    --seconds $((SECONDS - began))
}

part_contract() {
  local backend code=0 run left=${#backend_list[@]} chosen=(tests/ops)
  "$python" -c 'import pytest' || missing "the contract tests need pytest"
  "$python" -c 'import scipy' || missing "the contract tests need scipy"
  if [[ -n $dry_run ]]; then
    chosen=(tests/ops/test_transfer_reward.py tests/ops/test_upsampled_cross_entropy.py)
    chosen+=(-k "plain or odd")
  fi
  cd -- "$root"
  for backend in "${backend_list[@]}"; do
    run=0 && test_run "ops/$backend" "$backend" "$left" "${chosen[@]}" || run=$?
    code=$(worse "$code" "$run")
    left=$((left - 1))
  done
  if [[ " ${backend_list[*]} " == *" triton "* && -d tests/triton ]]; then
    run=0 && test_run tests/triton triton 1 tests/triton || run=$?
    code=$(worse "$code" "$run")
  fi
  ((code != 3)) || missing "a backend cannot be used: see runs"
  return "$code"
}

sanitizer_run() {  # NAME TOOL BACKEND RUNS_LEFT
  local share code=0 began=$SECONDS log=$work/sanitizer.log command=()
  share=$((($(seconds_left) - 20) / $4))
  if [[ $2 != none ]]; then
    command=(compute-sanitizer --tool "$2" --error-exitcode 9 --print-limit 20)
    command+=(--target-processes application-only)
  fi
  # Each tensor its own allocation: out of bounds is then out of what the sanitizer knows.
  timeout --kill-after=10 "$share" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${command[@]}" \
    "$python" "$here/gpu_sanitize.py" "$3" --few > "$log" 2>&1 || code=$?
  tail -n 60 "$log"
  report sanitizer sanitize "$1" --file "$log" --code "$code" --seconds $((SECONDS - began))
}

part_sanitize() {
  local tools=(memcheck racecheck initcheck) tool backend code=0 run usable=() left
  for backend in "${backend_list[@]}"; do
    if [[ -z $(why_unavailable "$backend") ]]; then usable+=("$backend"); fi
  done
  ((${#usable[@]})) || missing "none of these backends can be used: $backends"
  ((${#usable[@]} == ${#backend_list[@]})) || code=3
  if [[ -n $dry_run ]]; then
    tools=(none)
  elif ! command -v compute-sanitizer > /dev/null; then
    missing "there is no compute-sanitizer on PATH"
  fi
  left=$((${#tools[@]} * ${#usable[@]}))
  for backend in "${usable[@]}"; do
    for tool in "${tools[@]}"; do
      if ! report run-passed sanitize "$tool/$backend"; then
        run=0 && sanitizer_run "$tool/$backend" "$tool" "$backend" "$left" || run=$?
        code=$(worse "$code" "$run")
      fi
      left=$((left - 1))
    done
  done
  ((code != 3)) || missing "a backend or the tool cannot be used: see runs"
  return "$code"
}

part_kernels() {
  local code=0
  "$python" "$here/gpu_kernels.py" --result "$out/gpu_kernels.json" ${dry_run:+--dry-run} \
    --budget $(($(seconds_left) - 60)) --backends "${backend_list[@]}" || code=$?
  ((code != 3)) || missing "a backend cannot be used: see missing_backends; the rest was measured"
  return "$code"
}

part_step() {
  "$python" "$here/gpu_step.py" --result "$out/gpu_step.json" ${dry_run:+--dry-run} \
    --budget $(($(seconds_left) - 240))  # compiling may begin at the last moment, and takes long
}

part_train() {
  "$python" -c 'import yaml, rich, PIL, matplotlib, torchvision' ||
    missing "training needs pyyaml, rich, pillow, matplotlib and torchvision"
  "$python" "$here/gpu_train.py" --result "$out/gpu_train.json" ${dry_run:+--dry-run} \
    --runs "$work/runs" ${data:+--data "$data"}
}

if [[ -n $inside ]]; then
  "part_$inside"
  exit
fi

# ---- the session --------------------------------------------------------------------------------
run_part() {  # PART
  local part=$1 began=$SECONDS seconds=$part_limit code status why=''
  if [[ -n $limit ]] && ((limit - SECONDS - 10 < seconds)); then
    seconds=$((limit - SECONDS - 10))
    if ((seconds < 30)); then
      report finish "$part" missing --why "the time of the call was over before it began"
      return 0
    fi
  fi
  printf '\n==== %s (%d s at most)\n' "$part" "$seconds"
  rm -f -- "$work/why"
  if [[ -n $again ]]; then rm -f -- "$out/gpu_$part.json"; fi
  set +e
  SESSION_DRY_RUN=$dry_run SESSION_OUT=$out SESSION_BACKENDS=$backends SESSION_DATA=$data \
    SESSION_PATH=$outer_path SESSION_END=$(($(date +%s) + seconds)) \
    timeout --kill-after=20 "$seconds" bash "${BASH_SOURCE[0]}" --inside "$part" 2>&1 |
    tee -- "$out/gpu_$part.log"
  code=${PIPESTATUS[0]}
  set -e
  case $code in
    0) status=passed ;;
    3) status=missing why=$(cat -- "$work/why" 2> /dev/null || echo "see the log") ;;
    4) status='timed out' why="the time did not suffice; the next call goes on" ;;
    124 | 137) status='timed out' why="not done within $seconds s" ;;
    *) status=failed why="see gpu_$part.log" ;;
  esac
  report finish "$part" "$status" --why "$why" --seconds $((SECONDS - began))
  use_build
}

echo "results in $out"
has_gpu=1
if [[ -z $dry_run ]]; then
  "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2> /dev/null || has_gpu=
fi
tried_build=
for part in "${parts[@]}"; do
  if [[ -z $again ]] && report measured "$part" && { [[ $part != build ]] || built; }; then
    echo "$part has passed before; --again repeats it"
    continue
  fi
  if [[ -z $has_gpu && $part != environment ]]; then
    report finish "$part" missing --why "PyTorch finds no GPU; --dry-run rehearses on the CPU"
    continue
  fi
  case $part in
    environment) ;;
    build) tried_build=1 ;;
    *)
      if [[ -z $tried_build ]]; then
        tried_build=1
        built || run_part build
      fi
      ;;
  esac
  run_part "$part"
done
report summary "${parts[@]}"
