#!/usr/bin/env bash
# Trains the models of models/ again: makes the scenes, trains both backbones from random weights, evaluates both.
#   eng/train-scenes.sh [FOLDER] [DEVICE]
# FOLDER gets the scenes, the models and a log (default: scenes-run); DEVICE is cuda (default), cuda:N or cpu.
# SCENES names the program: a bundle's (eng/bundle.sh samples/Scenes, run by eng/run-bundle.sh), else it is built here.
set -euo pipefail

folder=${1:-scenes-run}
device=${2:-cuda}
root=$(cd "$(dirname "$0")/.." && pwd)
scenes() {
  if [ -n "${SCENES:-}" ]; then "$root/eng/run-bundle.sh" "$SCENES" "$@"
  else dotnet run --project "$root/samples/Scenes" --configuration Release -- "$@"
  fi
}

mkdir -p "$folder"
exec > >(tee -a "$folder/log.txt") 2>&1
date -u +'%Y-%m-%d %H:%M:%S UTC'
command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,driver_version --format=csv,noheader

scenes generate --seed 1 --splits train=60000 validation=1000 test=1000 unseen=1000 --out "$folder/data"
for backbone in mamba pythia; do
  scenes train --data "$folder/data" --backbone $backbone --seed 1 --device "$device" --out "$folder/scenes-$backbone" \
    --checkpoints "$folder/checkpoints-$backbone"
  for split in test unseen; do
    scenes evaluate --model "$folder/scenes-$backbone" --data "$folder/data" --split $split --device "$device"
  done
done
date -u +'%Y-%m-%d %H:%M:%S UTC'
