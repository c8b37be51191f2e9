#!/usr/bin/env bash
# Trains the models of models/ again: makes the scenes, trains both backbones from random weights, evaluates both.
#   eng/train-scenes.sh [FOLDER] [DEVICE_OF_PYTHIA] [DEVICE_OF_MAMBA]
# FOLDER gets the scenes, the models and logs (default: scenes-run). The devices are cuda (default), cuda:N or cpu; two that
# differ work at the same time. What FOLDER has already is not made again: a run that was stopped goes on with the next model.
#   1. start, then first: a Pythia with everything random. Its attention finds out what is where; a Mamba that has to learn to
#      see through its state alone stays on the plateau of "some object" (docs/scenes.md).
#   2. scenes-mamba: a random Mamba on the vision encoder and connector of first. Everything learns.
#   3. scenes-pythia: first goes on.
# SCENES is the command that runs the program, such as "eng/gpu.sh run MambaVL.Samples.Scenes"; else it is built here.
set -euo pipefail

folder=${1:-scenes-run}
on_pythia=${2:-cuda}
on_mamba=${3:-$on_pythia}
root=$(cd "$(dirname "$0")/.." && pwd)
scenes() {
  if [ -n "${SCENES:-}" ]; then $SCENES "$@"
  else dotnet run --project "$root/samples/Scenes" --configuration Release -- "$@"
  fi
}

# A model: its name, its device, the scenes, and what else train is told. Its log begins and ends with the time.
train() {
  local name=$1 device=$2 data=$3
  shift 3
  [ -e "$folder/$name/model.safetensors" ] && return
  {
    date -u +'%Y-%m-%d %H:%M:%S UTC'
    command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | sort -u
    echo "train --data $data --seed 1 $*"
    scenes train --data "$folder/$data" --seed 1 --device "$device" --out "$folder/$name" "$@"
    date -u +'%Y-%m-%d %H:%M:%S UTC'
  } > "$folder/$name.log" 2>&1
}

# Its scores on 1,000 scenes of each kind.
evaluate() {
  local split
  for split in test unseen; do
    scenes evaluate --model "$folder/$1" --data "$folder/data" --split $split --device "$2" > "$folder/$1.$split.json"
  done
}

mamba() {
  train scenes-mamba "$on_mamba" data --backbone mamba --encoder "$folder/first" --naming-steps 400 --first-steps 400 --steps 9000
  evaluate scenes-mamba "$on_mamba"
}

pythia() {
  train scenes-pythia "$on_pythia" data --backbone pythia --from "$folder/first" --steps 12000 --warmup 0.02
  evaluate scenes-pythia "$on_pythia"
}

mkdir -p "$folder"
[ -e "$folder/data/unseen.jsonl" ] || scenes generate --seed 1 --splits first=20000 train=50000 validation=1000 test=1000 unseen=1000 --out "$folder/data"
if [ ! -e "$folder/first/model.safetensors" ]; then
  [ -e "$folder/more/validation.jsonl" ] || scenes generate --seed 2 --splits train=30000 validation=300 --out "$folder/more"
  train start "$on_pythia" data --backbone pythia --naming-steps 600 --first-steps 600 --steps 5500
  train first "$on_pythia" more --backbone pythia --from "$folder/start" --steps 3700 --lr 8e-4 --warmup 0.02
fi
if [ "$on_pythia" = "$on_mamba" ]; then
  mamba
  pythia
else
  mamba & other=$!
  pythia
  wait $other
fi
