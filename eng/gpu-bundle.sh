#!/usr/bin/env bash
# Makes ONE self-contained linux-x64 bundle of several programs, without libtorch, for a GPU machine that has a PyTorch and no
# .NET SDK. They share the runtime and the libraries.
#   eng/gpu-bundle.sh [--skip-fixtures] [PROJECT...]      default: tests/Runner bench
# Writes .gpu/bundle.tar.xz (ignored by git). eng/gpu.sh unpacks and runs it there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fixtures=${MAMBAVL_FIXTURES:-../shared/fixtures}
if [ "${1:-}" = --skip-fixtures ]; then
  fixtures=
  shift
fi
[ $# -gt 0 ] || set -- tests/Runner bench

mkdir -p .gpu
work=$PWD/.gpu/work
rm -rf "$work/app"
for project in "$@"; do
  # The artifacts folder stays, so that the next bundle builds only what changed; it is not the projects' own obj, which keeps
  # the packages of a normal build.
  dotnet publish "$project" --configuration Release --runtime linux-x64 --self-contained true \
    --artifacts-path "$work/artifacts" --output "$work/app" \
    -p:TorchBackend=none -p:DebugType=none -p:DebugSymbols=false -p:GenerateDocumentationFile=false \
    -p:CreateHardLinksForCopyLocalIfPossible=false -p:InvariantGlobalization=true --verbosity quiet --nologo
done

# What an application brings that names its native package itself; and the compiler, with which tests read the documentation's code.
find "$work/app" \( -name 'Microsoft.CodeAnalysis*' -o -name 'libtorch*.so*' -o -name 'libc10*.so*' -o -name 'libgomp*.so*' -o -name '*.pdb' -o -name '*.xml' -o -name '*.dbg' -o -name 'libmscord*' -o -name 'libcoreclrtrace*' -o -name createdump \) -delete
# The larger reference answers go along where they are: the tests look for them through MAMBAVL_FIXTURES.
rm -rf "$work/fixtures"
if [ -n "$fixtures" ] && [ -d "$fixtures" ]; then cp -r "$fixtures" "$work/fixtures"; else mkdir -p "$work/fixtures"; fi

# Under another name, then renamed: never half a bundle.
tar -C "$work" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - app fixtures | xz -9 > .gpu/bundle.tar.xz.part
mv .gpu/bundle.tar.xz.part .gpu/bundle.tar.xz
printf '.gpu/bundle.tar.xz: %s MB; the programs take %s MB, the fixtures %s MB\n' "$(($(stat -c %s .gpu/bundle.tar.xz) / 1000000))" \
  "$(($(du -sb "$work/app" | cut -f1) / 1000000))" "$(($(du -sb "$work/fixtures" | cut -f1) / 1000000))"
