#!/usr/bin/env bash
# Runs a bundle of eng/bundle.sh with the libtorch of a Python install of PyTorch 2.10 or 2.11 (CUDA or CPU).
#   eng/run-bundle.sh BUNDLE.tar.gz|FOLDER [ARGUMENTS...]
# The install is that of MAMBAVL_LIBTORCH_DIR (its lib folder), else of ${PYTHON:-python3}.
set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: eng/run-bundle.sh BUNDLE.tar.gz|FOLDER [ARGUMENTS...]" >&2
  exit 2
fi
bundle=$1
shift

torch=${MAMBAVL_LIBTORCH_DIR:-}
if [ -z "$torch" ]; then
  python=${PYTHON:-python3}
  torch=$("$python" -c 'import importlib.util, os; s = importlib.util.find_spec("torch"); print(os.path.join(os.path.dirname(s.origin), "lib") if s else "")' || true)
  if [ -z "$torch" ]; then
    echo "eng/run-bundle.sh: $python has no torch; set PYTHON, or MAMBAVL_LIBTORCH_DIR to the lib folder of a PyTorch install" >&2
    exit 1
  fi
fi
if [ ! -e "$torch/libtorch_cpu.so" ]; then
  echo "eng/run-bundle.sh: no libtorch_cpu.so in $torch" >&2
  exit 1
fi

if [ -d "$bundle" ]; then
  folder=$bundle
else
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  tar -C "$work" -xzf "$bundle"
  folder=$work/$(ls "$work")
fi
folder=$(cd "$folder" && pwd)

program=
for candidate in "$folder"/*.runtimeconfig.json; do
  [ -e "$candidate" ] && program=${candidate%.runtimeconfig.json}
done
if [ -z "$program" ] || [ ! -x "$program" ]; then
  echo "eng/run-bundle.sh: no program in $folder" >&2
  exit 1
fi

path=$folder:$torch
for nvidia in "$torch"/../../nvidia/*/lib "$torch"/../../torch.libs; do
  [ -d "$nvidia" ] && path=$path:$(cd "$nvidia" && pwd)
done

export MAMBAVL_LIBTORCH_DIR=$torch
export LD_LIBRARY_PATH=$path${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
status=0
"$program" "$@" || status=$?
exit "$status"
