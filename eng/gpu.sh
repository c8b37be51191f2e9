#!/usr/bin/env bash
# What a GPU machine runs, from the root of a copy of the repository with .gpu/bundle.tar.xz (eng/gpu-bundle.sh) in it. It needs
# bash, xz or python3, and a python3 with PyTorch 2.10 or 2.11; no .NET and no network.
#   eng/gpu.sh unpack                        the bundle to .gpu/app and .gpu/fixtures; a second call with the same bundle does nothing
#   eng/gpu.sh tests [TEXT...]               the tests whose full name holds one of the texts; all without one
#   eng/gpu.sh gpu-tests                     every test that wants a GPU, and the parity tests on cuda
#   eng/gpu.sh sanitize [TEXT...]            memcheck, racecheck, synccheck and initcheck on tests; default: those of kernels
#                                            (TOOLS="memcheck ..." chooses, LIMIT=seconds of each, SANITIZER_OPTIONS adds)
#   eng/gpu.sh bench [VERB ARGUMENTS...]     the benchmarks; default: gpu, with --json
#   eng/gpu.sh agree [ARGUMENTS...]          whole models against PyTorch's logits, with --json
#   eng/gpu.sh run PROGRAM ARGUMENTS...      any program of the bundle
# Logs go to $OUT (default .gpu/out), one a verb. The verbs after unpack unpack by themselves.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${OUT:-$PWD/.gpu/out}
mkdir -p "$out"
app=$PWD/.gpu/app

unpack() {
  local bundle=.gpu/bundle.tar.xz stamp
  if [ ! -e "$bundle" ]; then
    [ -d "$app" ] && return
    echo "eng/gpu.sh: there is no $bundle; eng/gpu-bundle.sh makes it (name .gpu/bundle.tar.xz in carry)" >&2
    exit 2
  fi
  stamp=$(stat -c '%s' "$bundle")-$(sha256sum "$bundle" | cut -c1-16)
  [ "$(cat .gpu/unpacked 2>/dev/null || true)" = "$stamp" ] && return
  rm -rf .gpu/app .gpu/fixtures .gpu/unpacked
  if command -v xz >/dev/null; then
    tar -C .gpu -xJf "$bundle"
  else
    python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1], "r:xz").extractall(sys.argv[2], filter="fully_trusted")' "$bundle" .gpu
  fi
  echo "$stamp" > .gpu/unpacked
}

# libtorch and NVIDIA's libraries are those of the Python install, as in eng/run-bundle.sh.
find_torch() {
  local torch=${MAMBAVL_LIBTORCH_DIR:-} path nvidia
  [ -n "$torch" ] || torch=$("${PYTHON:-python3}" -c 'import importlib.util, os; s = importlib.util.find_spec("torch"); print(os.path.join(os.path.dirname(s.origin), "lib") if s else "")')
  if [ ! -e "$torch/libtorch_cpu.so" ]; then
    echo "eng/gpu.sh: no libtorch_cpu.so in '$torch'; set PYTHON, or MAMBAVL_LIBTORCH_DIR to the lib folder of a PyTorch install" >&2
    exit 2
  fi
  path=$app:$torch
  for nvidia in "$torch"/../../nvidia/*/lib "$torch"/../../torch.libs; do
    [ -d "$nvidia" ] && path=$path:$(cd "$nvidia" && pwd)
  done
  export MAMBAVL_LIBTORCH_DIR=$torch LD_LIBRARY_PATH=$path${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  export MAMBAVL_CACHE=${MAMBAVL_CACHE:-/tmp/mambavl-cache}
  if [ -d .gpu/fixtures ] && [ -n "$(ls .gpu/fixtures)" ]; then export MAMBAVL_FIXTURES=${MAMBAVL_FIXTURES:-$PWD/.gpu/fixtures}; fi
}

# Each text as one more --class of the runner.
classes() {
  local text
  for text in "$@"; do printf -- '--class\n%s\n' "$text"; done
}

tests() {
  local chosen=()
  mapfile -t chosen < <(classes "$@")
  "$app/MambaVL.Tests.Runner" "${chosen[@]}"
}

gpu_tests() {
  local status=0
  "$app/MambaVL.Tests.Runner" --verbose --class Cuda --class KernelCompilation || status=$?
  "$app/MambaVL.Tests.Runner" --verbose --assembly MambaVL.Trainers.Tests --class OnAGpu || status=$?
  MAMBAVL_TEST_DEVICE=cuda "$app/MambaVL.Tests.Runner" --trait Category=Parity || status=$?
  return $status
}

sanitize() {
  local tool filter chosen=() status=0
  [ $# -gt 0 ] || set -- CudaKernelTests CudaScan CudaNorm CudaConvolution AddNorms SwiGlu Rotary CudaAdamW CudaDecoder
  mapfile -t chosen < <(classes "$@")
  # Every tensor an allocation of its own, so that what lies beside it is nobody's. .NET maps its code twice, once to write and
  # once to run, which tools that rewrite code do not expect.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1 DOTNET_EnableWriteXorExecute=0
  for tool in ${TOOLS:-memcheck racecheck synccheck initcheck}; do
    # This project's kernels have C names; libtorch's C++ names begin with _Z, and are left to run at full speed. initcheck has to
    # see what they write.
    filter=(--kernel-name-exclude kns=_Z)
    [ "$tool" = initcheck ] && filter=()
    echo "== $tool"
    timeout "${LIMIT:-130}" compute-sanitizer --tool "$tool" --target-processes all --require-cuda-init no --error-exitcode 9 --print-limit 20 \
      "${filter[@]}" ${SANITIZER_OPTIONS:-} "$app/MambaVL.Tests.Runner" --verbose --sequential --not Refused --not MoreShared "${chosen[@]}" || status=$?
    echo "== $tool: exit code $status"
  done
  return $status
}

verb=${1:-}
[ $# -gt 0 ] && shift
case $verb in
  unpack) unpack; du -sh .gpu/app .gpu/fixtures; exit ;;
  tests | sanitize) run=("$verb" "$@") ;;
  gpu-tests) run=(gpu_tests) ;;
  bench)
    [ $# -gt 0 ] || set -- gpu --json "$out/gpu.json"
    run=("$app/MambaVL.Bench" "$@") ;;
  agree) run=("$app/MambaVL.Bench" agree --json "$out/agree.json" "$@") ;;
  run)
    [ $# -gt 0 ] || { echo "eng/gpu.sh: run which program?" >&2; exit 2; }
    program=$1
    shift
    run=("$app/$program" "$@") ;;
  *)
    sed -n '2,/^set /{/^#/p}' "${BASH_SOURCE[0]}" >&2
    exit 2 ;;
esac
unpack
find_torch
"${run[@]}" 2>&1 | tee "$out/$verb.log"
