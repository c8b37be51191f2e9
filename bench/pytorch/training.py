"""mamba-790m, 8 rows of 640: float32 weights, autocast to bf16, AdamW (fused), with mamba_ssm's scan."""
import torch
import torch.nn.functional as F

import models
from common import Report, arguments, used_gigabytes, wall


def main():
    options = arguments(repeats=7)
    report = Report(options.json)
    if models.selective_scan_cuda is None:
        print("training needs mamba_ssm's scan", flush=True)
        return
    weights = {n: t.requires_grad_() for n, t in models.random_weights(models.mamba_shapes(1536, 48, 50280), torch.float32).items()}
    model = models.Mamba(weights)
    model.cached = [model.layer(i) for i in range(model.layers)]
    optimiser = torch.optim.AdamW(list(weights.values()), lr=1e-5, fused=True)
    ids = torch.randint(0, 50000, (8, 641), device="cuda")

    def step(_):
        with torch.autocast("cuda", torch.bfloat16):
            logits = model.forward(ids[:, :-1], last_only=False)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    report.add("training mamba-790m, b8 l640", "autocast, fused AdamW, mamba_ssm", wall(options.repeats, step, warm_ups=3), used_gigabytes())


main()
