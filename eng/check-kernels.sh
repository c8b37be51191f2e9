#!/usr/bin/env bash
# Checks syntax and types of the CUDA kernels with clang, where there is no CUDA: every source that has a line
# "// check: -DNAME=VALUE ..." is compiled to PTX with each such set of macros. The real compiler is NVRTC; a test
# compiles everything with it where it is found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../src/Backbones/Cuda/Kernels"
clang=${CLANG:-clang-14}
for file in "${@:-*.cu}"; do
  for source in $file; do
    grep -E '^// check:' "$source" | sed 's,^// check: *,,' | while read -r defines; do
      for arch in ${ARCHS:-sm_75 sm_80 sm_86}; do
        # shellcheck disable=SC2086
        "$clang" -x cuda --cuda-gpu-arch=$arch -nocudainc -nocudalib --cuda-device-only -std=c++17 -O2 -S -Wall -Wno-unknown-pragmas \
          -Wno-unused-function -Wno-pass-failed -Xclang -target-feature -Xclang +ptx75 -include ../../../../eng/cuda_shim.h -I. $defines "$source" -o "/tmp/$(basename "$source").$arch.ptx"
      done
      echo "ok  $source $defines"
    done
  done
done
