#!/usr/bin/env bash
# Makes a self-contained linux-x64 bundle of an application without libtorch, for a machine that has a PyTorch.
#   eng/bundle.sh PROJECT [OUTPUT.tar.gz]
# eng/run-bundle.sh runs it there. The project must take its native package by TorchBackend (docs/native-runtime.md).
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  echo "usage: eng/bundle.sh PROJECT [OUTPUT.tar.gz]" >&2
  exit 2
fi
project=$1
name=$(basename "${project%.csproj}")
output=${2:-$name-linux-x64.tar.gz}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# An artifacts folder of its own: the project's obj keeps the packages of its normal build.
dotnet publish "$project" --configuration Release --runtime linux-x64 --self-contained true \
  --artifacts-path "$work/artifacts" --output "$work/$name" \
  -p:TorchBackend=none -p:DebugType=none -p:DebugSymbols=false -p:GenerateDocumentationFile=false \
  -p:CreateHardLinksForCopyLocalIfPossible=false --verbosity quiet --nologo

# What an application brings that names its native package itself.
find "$work/$name" \( -name 'libtorch*.so*' -o -name 'libc10*.so*' -o -name 'libgomp*.so*' -o -name 'libshm*.so*' \
  -o -name 'libcu*.so*' -o -name 'libnv*.so*' -o -name 'libnccl*.so*' \) -delete
if [ -z "$(find "$work/$name" -name libLibTorchSharp.so)" ]; then
  echo "eng/bundle.sh: $name does not use TorchSharp: the publish has no libLibTorchSharp.so" >&2
  exit 1
fi

# Under another name in the same folder, then renamed: never half a bundle.
tar -C "$work" --owner=0 --group=0 --numeric-owner -czf "$output.part" "$name"
mv "$output.part" "$output"
printf '%s: %s MB, unpacked %s MB\n' "$output" "$(($(stat -c %s "$output") / 1000000))" "$(($(du -sb "$work/$name" | cut -f1) / 1000000))"
