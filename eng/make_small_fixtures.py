#!/usr/bin/env python3
"""Makes tests/data/fixtures, the reference answers that a clone carries, out of the full set of fixtures.

    python3 eng/make_small_fixtures.py [FULL_SET]

The full set is the argument, else MAMBAVL_FIXTURES, else ../shared/fixtures beside the repository. The same input gives the
same bytes. Needs Python 3.9 and nothing else. What is left out of each folder stands in `main`; the README.md of the result is
written by hand and stays.
"""

import json
import math
import os
import pathlib
import shutil
import struct
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TARGET = REPOSITORY / "tests" / "data" / "fixtures"
LIMIT = 3_000_000  # bytes, all files together

SMALL_IMAGE = 100  # pixels on a side; larger expected images are left out
POSITIONS = 48  # of a causal model's answers: what comes later does not change what came before
SMALL_GRADIENT = 512  # numbers; the gradients of larger parameters are left out


def read(path):
    """The header of a safetensors file, and its data."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]


def write(path, tensors, metadata):
    """A safetensors file of (name, dtype, shape, bytes), in that order."""
    header, offset = {}, 0
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(bytes(t[3]) for t in tensors))


def copy(full, folder, *names):
    (TARGET / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(full / folder / name, TARGET / folder / name)


def trim(full, folder, keep):
    """Copies expected.safetensors; `keep` gives the positions of a tensor to keep: all of them (True), none (False) or a
    number, counted along the second axis."""
    header, data = read(full / folder / "expected.safetensors")
    metadata = header.pop("__metadata__", None)
    tensors = []
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        shape, wanted = entry["shape"], keep(name, entry["shape"])
        if wanted is False:
            continue
        content = data[start:end]
        if wanted is not True and wanted < shape[1]:
            row = len(content) // shape[0]
            part = row // shape[1] * wanted
            content = b"".join(bytes(content[i * row : i * row + part]) for i in range(shape[0]))
            shape = [shape[0], wanted, *shape[2:]]
        tensors.append((name, entry["dtype"], shape, content))
    (TARGET / folder).mkdir(parents=True, exist_ok=True)
    write(TARGET / folder / "expected.safetensors", tensors, metadata)


def largest_case(header):
    sizes = {}
    for name, entry in header.items():
        if name != "__metadata__":
            case = name.split(".", 1)[0]
            sizes[case] = sizes.get(case, 0) + entry["data_offsets"][1] - entry["data_offsets"][0]
    return max(sizes, key=lambda case: (sizes[case], case))


def main():
    shared = REPOSITORY.parent / "shared" / "fixtures"
    full = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("MAMBAVL_FIXTURES") or shared)
    if not full.is_dir():
        sys.exit(f"'{full}' is no folder; name the full set of fixtures, or set MAMBAVL_FIXTURES.")
    if full.resolve() == TARGET.resolve():
        sys.exit("The small set cannot be made out of itself.")
    for old in TARGET.glob("*"):
        if old.is_dir():
            shutil.rmtree(old)

    copy(full, "eva02", "config.json", "model.safetensors", "expected.safetensors")
    copy(full, "prompts", "cases.json", "image_tokens.json")
    copy(full, "metrics", "captioning.json")

    copy(full, "images", *sorted(p.name for p in (full / "images").glob("*.png")))
    header, _ = read(full / "images" / "expected.safetensors")
    sizes = {int(name.rsplit(".", 1)[1]) for name in header if name != "__metadata__"}
    # Normalised pixels are four times as large and follow from the resized ones: of them the smallest size does.
    trim(full, "images", lambda name, shape: int(name.rsplit(".", 1)[1]) <= (min(sizes) if ".pixel_values." in name else SMALL_IMAGE))

    header, _ = read(full / "selective-scan" / "expected.safetensors")
    largest = largest_case(header)
    copy(full, "selective-scan", "README.json")
    trim(full, "selective-scan", lambda name, shape: not name.startswith(largest + "."))

    copy(full, "mamba-ssm", "config.json", "pytorch_model.bin")
    trim(full, "mamba-ssm", lambda name, shape: POSITIONS if name in ("input_ids", "logits") else True)

    # The loss is a mean over all positions, so these rows stay whole.
    copy(full, "pythia-hf", "config.json", "model.safetensors")
    trim(full, "pythia-hf", lambda name, shape: name in ("input_ids", "logits", "loss", "greedy")
         or (name.startswith("grad.") and math.prod(shape) <= SMALL_GRADIENT))

    total = sum(p.stat().st_size for p in TARGET.rglob("*") if p.is_file())
    for folder in sorted(p for p in TARGET.iterdir() if p.is_dir()):
        print(f"{folder.name:16} {sum(p.stat().st_size for p in folder.iterdir()):9,}")
    print(f"{'together':16} {total:9,} of {LIMIT:,}")
    if total > LIMIT:
        sys.exit("The small set is larger than it may be.")


if __name__ == "__main__":
    main()
