"""The selective scan: mamba_ssm's kernel where it can be imported, else a loop of tensor operations over time."""
import torch
import torch.nn.functional as F

from common import Report, arguments, free_memory, kernels, wall
from models import selective_scan_cuda

N = 16
SHAPES = [(1, 3072, 640), (1, 5120, 640), (8, 5120, 640), (16, 4096, 640), (4, 5120, 2048), (1, 5120, 8192)]


def inputs(seed, b, d, l):
    random = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, device="cuda", generator=random)

    def narrow(*shape):
        return normal(*shape).bfloat16()

    return (narrow(b, d, l), narrow(b, d, l), -normal(d, N).exp(), narrow(b, 1, N, l), narrow(b, 1, N, l), normal(d), narrow(b, d, l), normal(d) - 3)


def loop(u, delta, A, B, C, D, z, bias):
    step = F.softplus(delta.float() + bias[:, None])
    u32, B, C = u.float(), B[:, 0].float(), C[:, 0].float()
    h = torch.zeros(*u.shape[:2], N, device="cuda")
    y = []
    for t in range(u.shape[2]):
        s = step[..., t, None]
        h = torch.exp(s * A) * h + s * u32[..., t, None] * B[:, None, :, t]
        y.append((h * C[:, None, :, t]).sum(-1))
    return ((torch.stack(y, -1) + D[:, None] * u32) * F.silu(z.float())).to(u.dtype)


def main():
    options = arguments(repeats=48)
    report = Report(options.json)
    for b, d, l in SHAPES:
        free_memory()
        sets = [inputs(i, b, d, l) for i in range(max(2, int(3e8 / (8.0 * b * d * l)) + 1))]
        forward, backward = f"scan forward ({b}, {d}, {l})", f"scan backward ({b}, {d}, {l})"
        if selective_scan_cuda is None:
            with torch.inference_mode():
                report.add(forward, "a loop of tensor operations", wall(3, lambda i: loop(*sets[i % len(sets)]), warm_ups=1))
            continue
        report.add(forward, "mamba_ssm", kernels(options.repeats, lambda i: selective_scan_cuda.fwd(*sets[i % len(sets)], True)))
        gradient = torch.randn(b, d, l, device="cuda").bfloat16()
        few = [s + tuple(selective_scan_cuda.fwd(*s, True)[:2]) for s in sets[:4]]

        def run(i):
            u, delta, A, B, C, D, z, bias, out, x = few[i % len(few)]
            selective_scan_cuda.bwd(u, delta, A, B, C, D, z, bias, gradient, x, out, None, True, False)

        report.add(backward, "mamba_ssm", kernels(options.repeats, run))


main()
