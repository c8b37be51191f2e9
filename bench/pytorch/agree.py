"""Logits of a whole model against PyTorch's in float32, by the measure of what PyTorch's own bf16 makes of them.

The folder holds the weights (*.safetensors, bf16) and ours.safetensors: ids [l], of which the first are the prompt and the rest what
our side chose greedily; forward [l, v], our logits at every position at once; decode [l - prompt, v], our logits a token at a time."""
import glob
import json
import os

import torch
from safetensors.torch import load_file

import models
from common import arguments


def reference(kind, heads, weights, ids, dtype):
    """Logits [l, v] in float32 of the model computed in dtype."""
    if kind == "mamba":
        model = models.Mamba(weights, dtype).prepare()
        states = model.states(1)
        return torch.cat([model.step(ids[t:t + 1], states).float() for t in range(len(ids))])
    return models.GptNeoX(weights, heads, dtype).forward(ids.unsqueeze(0))[0].float()


def main():
    options = arguments(folder="", kind="mamba", heads=0, name="")
    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    weights = {}
    for file in sorted(glob.glob(os.path.join(options.folder, "model*.safetensors"))):
        weights |= load_file(file, device="cuda")
    ours = load_file(os.path.join(options.folder, "ours.safetensors"), device="cuda")
    ids = ours["ids"]
    chosen = len(ours["decode"])
    exact = reference(options.kind, options.heads, weights, ids, torch.float32)
    theirs = reference(options.kind, options.heads, weights, ids, torch.bfloat16)
    first = len(ids) - chosen - 1  # the position whose logits choose the first new token

    results = []
    for name, logits, at in (("forward", ours["forward"], 0), ("decode", ours["decode"], first)):
        want, other = exact[at:at + len(logits)], theirs[at:at + len(logits)]
        error, allowed = ((logits - want).norm() / want.norm()).item(), ((other - want).norm() / want.norm()).item()
        results.append({"case": f"{options.name} {name}", "error": error, "pyTorch": allowed, "worst": (logits - want).abs().max().item(),
                        "pyTorchWorst": (other - want).abs().max().item(), "spread": want.std().item()})
    # Along our tokens: each is the float32 model's choice, unless its best two logits lie closer than PyTorch's own error there.
    want, other = exact[first:first + chosen], theirs[first:first + chosen]
    best = want.topk(2, -1)
    clear = (best.values[:, 0] - best.values[:, 1]) > (other - want).abs().amax(-1)
    same = best.indices[:, 0] == ids[first + 1:]
    greedy = {"case": f"{options.name} greedy", "tokens": chosen, "clear": int(clear.sum()), "same": int(same.sum()),
              "differing": int((clear & ~same).sum()), "distinct": int(ids[first + 1:].unique().numel()),
              "pyTorchSame": int((other.argmax(-1) == best.indices[:, 0]).sum())}
    with open(options.json, "w") as f:
        json.dump({"logits": results, "greedy": greedy}, f)


main()
