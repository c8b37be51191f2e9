#!/usr/bin/env bash
# Trains the models of models/ again: makes the scenes, trains both backbones from random weights, evaluates both.
#   eng/train-scenes.sh [FOLDER] [DEVICE_OF_MAMBA] [DEVICE_OF_PYTHIA]
# FOLDER gets the scenes, the models and logs (default: scenes-run). The devices are cuda (default), cuda:N or cpu; two that
# differ work at the same time. STEPS is the length of the last lesson, MORE that of a second pass over other scenes.
# SCENES is the command that runs the program, such as "eng/gpu.sh run MambaVL.Samples.Scenes"; else it is built here.
set -euo pipefail

folder=${1:-scenes-run}
devices=("${2:-cuda}" "${3:-${2:-cuda}}")
steps=${STEPS:-5500}
more=${MORE:-3700}
root=$(cd "$(dirname "$0")/.." && pwd)
scenes() {
  if [ -n "${SCENES:-}" ]; then $SCENES "$@"
  else dotnet run --project "$root/samples/Scenes" --configuration Release -- "$@"
  fi
}

# One backbone: its log, its model, its scores on 1,000 scenes of each kind.
backbone() {
  local name=$1 device=$2 split
  {
    date -u +'%Y-%m-%d %H:%M:%S UTC'
    command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | sort -u
    scenes train --data "$folder/data" --backbone "$name" --seed 1 --steps "$steps" --device "$device" --out "$folder/scenes-$name.first"
    scenes train --data "$folder/more" --backbone "$name" --seed 1 --from "$folder/scenes-$name.first" --steps "$more" --lr 8e-4 --warmup 0.02 \
      --device "$device" --out "$folder/scenes-$name"
    date -u +'%Y-%m-%d %H:%M:%S UTC'
  } > "$folder/scenes-$name.log" 2>&1
  for split in test unseen; do
    scenes evaluate --model "$folder/scenes-$name" --data "$folder/data" --split $split --device "$device" ${EVALUATE:-} > "$folder/scenes-$name.$split.json"
  done
}

mkdir -p "$folder"
[ -e "$folder/data/unseen.jsonl" ] || scenes generate --seed 1 --splits first=20000 train=50000 validation=1000 test=1000 unseen=1000 --out "$folder/data"
[ -e "$folder/more/validation.jsonl" ] || scenes generate --seed 2 --splits train=30000 validation=300 --out "$folder/more"
if [ "${devices[0]}" = "${devices[1]}" ]; then
  backbone mamba "${devices[0]}"
  backbone pythia "${devices[1]}"
else
  backbone mamba "${devices[0]}" &
  backbone pythia "${devices[1]}"
  wait
fi
