"""Mamba and GPT-NeoX in plain PyTorch operations, over weights that are named as checkpoints name them."""
import math

import torch
import torch.nn.functional as F

try:
    import selective_scan_cuda  # mamba_ssm's kernel
except ImportError:
    selective_scan_cuda = None


def random_weights(shapes, dtype, device="cuda", seed=1):
    """As the C# side's DeviceParameters: deep models whose logits are neither flat nor infinite."""
    random = torch.Generator(device).manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        keep = name.endswith(("A_log", ".D", "dt_proj.bias"))
        if name.endswith("A_log"):
            value = torch.arange(1, shape[1] + 1, device=device, dtype=torch.float32).log().expand(shape).contiguous()
        elif name.endswith("dt_proj.bias"):
            value = torch.full(shape, -4.6, device=device)
        elif name.endswith((".D", "norm.weight", "norm_f.weight", "layernorm.weight", "layer_norm.weight")):
            value = torch.ones(shape, device=device)
        elif name.endswith("bias"):
            value = torch.zeros(shape, device=device)
        else:
            deviation = 3 / math.sqrt(shape[1]) if shape[0] > 50000 else 1 / math.sqrt(math.prod(shape[1:]))
            value = torch.randn(shape, device=device, generator=random) * deviation
        weights[name] = value.to(torch.float32 if keep else dtype)
    return weights


def mamba_shapes(d, layers, vocabulary, n=16, k=4):
    e, r = 2 * d, (d + 15) // 16
    shapes = {"backbone.embedding.weight": (vocabulary, d)}
    for i in range(layers):
        p = f"backbone.layers.{i}."
        shapes |= {p + "norm.weight": (d,), p + "mixer.in_proj.weight": (2 * e, d), p + "mixer.conv1d.weight": (e, 1, k), p + "mixer.conv1d.bias": (e,),
                   p + "mixer.x_proj.weight": (r + 2 * n, e), p + "mixer.dt_proj.weight": (e, r), p + "mixer.dt_proj.bias": (e,),
                   p + "mixer.A_log": (e, n), p + "mixer.D": (e,), p + "mixer.out_proj.weight": (d, e)}
    return shapes | {"backbone.norm_f.weight": (d,)}


def rms_norm(x, weight, epsilon=1e-5):
    return F.rms_norm(x.float(), (x.shape[-1],), weight.float(), epsilon).to(weight.dtype)


class ScanFunction(torch.autograd.Function):
    """mamba_ssm's kernel, B and C as (b, n, l)."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, bias):
        B, C = B.contiguous().unsqueeze(1), C.contiguous().unsqueeze(1)
        out, x, out_z = selective_scan_cuda.fwd(u, delta, A, B, C, D, z, bias, True)
        ctx.save_for_backward(u, delta, A, B, C, D, z, bias, x, out)
        ctx.mark_non_differentiable(x)
        return out_z, x

    @staticmethod
    def backward(ctx, grad, _):
        u, delta, A, B, C, D, z, bias, x, out = ctx.saved_tensors
        du, ddelta, dA, dB, dC, dD, dbias, dz = selective_scan_cuda.bwd(u, delta, A, B, C, D, z, bias, grad.contiguous(), x, out, None, True, False)
        return du, ddelta, dA, dB.squeeze(1), dC.squeeze(1), dD, dz, dbias


class Mamba:
    def __init__(self, weights, dtype=None):
        """dtype: converts what is not kept in float32."""
        keep = ("A_log", ".D", "dt_proj.bias")
        self.w = {n: t if dtype is None or n.endswith(keep) else t.to(dtype) for n, t in weights.items()}
        self.layers = 1 + max(int(n.split(".")[2]) for n in weights if n.startswith("backbone.layers."))
        self.e, self.n = weights["backbone.layers.0.mixer.A_log"].shape
        self.r = weights["backbone.layers.0.mixer.dt_proj.weight"].shape[1]
        self.k = weights["backbone.layers.0.mixer.conv1d.weight"].shape[2]
        self.table = self.w["backbone.embedding.weight"]
        self.head = self.w.get("lm_head.weight", self.table)
        self.dtype = self.table.dtype

    def layer(self, i):
        return {n.split(".", 3)[3]: t for n, t in self.w.items() if n.startswith(f"backbone.layers.{i}.")}

    def prepare(self):
        """What a step would otherwise look up or compute anew."""
        self.cached = [self.layer(i) | {"A": -self.w[f"backbone.layers.{i}.mixer.A_log"].exp(),
                                        "filter": self.w[f"backbone.layers.{i}.mixer.conv1d.weight"].squeeze(1).float(),
                                        "filter_bias": self.w[f"backbone.layers.{i}.mixer.conv1d.bias"].float()} for i in range(self.layers)]
        return self

    def states(self, rows):
        f32 = {"dtype": torch.float32, "device": self.table.device}
        return [(torch.zeros(rows, self.e, self.k, **f32), torch.zeros(rows, self.e, self.n, **f32)) for _ in range(self.layers)]

    def step(self, ids, states):
        """[b] -> logits [b, v]; moves the states on in place."""
        x = F.embedding(ids, self.table).float()
        for w, (window, h) in zip(self.cached, states):
            u, z = F.linear(rms_norm(x, w["norm.weight"]), w["mixer.in_proj.weight"]).chunk(2, -1)
            window.copy_(torch.cat((window[..., 1:], u.float().unsqueeze(-1)), -1))
            u = F.silu((window * w["filter"]).sum(-1) + w["filter_bias"]).to(self.dtype)
            delta, B, C = F.linear(u, w["mixer.x_proj.weight"]).split((self.r, self.n, self.n), -1)
            delta = F.softplus(F.linear(delta, w["mixer.dt_proj.weight"]).float() + w["mixer.dt_proj.bias"]).unsqueeze(-1)
            h.mul_(torch.exp(delta * w["A"])).add_(delta * u.float().unsqueeze(-1) * B.float().unsqueeze(1))
            y = (h * C.float().unsqueeze(1)).sum(-1) + w["mixer.D"] * u.float()
            x = x + F.linear((y * F.silu(z.float())).to(self.dtype), w["mixer.out_proj.weight"]).float()
        return F.linear(rms_norm(x, self.w["backbone.norm_f.weight"]), self.head)

    def forward(self, ids, last_only=True):
        """[b, l] -> logits, by mamba_ssm's scan; gradients where the weights ask for them."""
        x = F.embedding(ids, self.table).float()
        length = ids.shape[1]
        for w in self.cached:
            u, z = F.linear(rms_norm(x, w["norm.weight"]), w["mixer.in_proj.weight"]).transpose(1, 2).chunk(2, 1)  # (b, e, l) each
            u = F.silu(F.conv1d(u, w["mixer.conv1d.weight"], w["mixer.conv1d.bias"], padding=self.k - 1, groups=self.e)[..., :length])
            delta, B, C = F.linear(u.transpose(1, 2), w["mixer.x_proj.weight"]).split((self.r, self.n, self.n), -1)
            delta = F.linear(delta, w["mixer.dt_proj.weight"]).transpose(1, 2).contiguous()
            y, _ = ScanFunction.apply(u.contiguous(), delta, -w["mixer.A_log"].exp(), B.transpose(1, 2), C.transpose(1, 2), w["mixer.D"], z.contiguous(), w["mixer.dt_proj.bias"])
            x = x + F.linear(y.transpose(1, 2), w["mixer.out_proj.weight"]).float()
        x = x[:, -1] if last_only else x
        return F.linear(rms_norm(x, self.w["backbone.norm_f.weight"]), self.head)


class GptNeoX:
    def __init__(self, weights, heads, dtype=None, rotary=0.25):
        self.w = {n: t if dtype is None else t.to(dtype) for n, t in weights.items()}
        self.layers = 1 + max(int(n.split(".")[2]) for n in weights if n.startswith("gpt_neox.layers."))
        self.heads = heads
        self.width = self.w["gpt_neox.embed_in.weight"].shape[1]
        self.rotary = int(self.width // heads * rotary)

    def turn(self, x, cos, sin):
        first, rest = x[..., :self.rotary], x[..., self.rotary:]
        a, b = first.chunk(2, -1)
        return torch.cat((first * cos + torch.cat((-b, a), -1) * sin, rest), -1)

    def forward(self, ids):
        """[b, l] -> logits [b, l, v]."""
        w = self.w
        x = F.embedding(ids, w["gpt_neox.embed_in.weight"])
        b, length = ids.shape
        frequencies = 10000.0 ** -(torch.arange(0, self.rotary, 2, device=ids.device, dtype=torch.float32) / self.rotary)
        angles = torch.outer(torch.arange(length, device=ids.device, dtype=torch.float32), frequencies).repeat(1, 2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)

        def norm(x, name):
            return F.layer_norm(x, (self.width,), w[name + ".weight"], w[name + ".bias"], 1e-5)

        def linear(x, name):
            return F.linear(x, w[name + ".weight"], w.get(name + ".bias"))

        for i in range(self.layers):
            p = f"gpt_neox.layers.{i}."
            q, k, v = linear(norm(x, p + "input_layernorm"), p + "attention.query_key_value").view(b, length, self.heads, -1).transpose(1, 2).chunk(3, -1)
            y = F.scaled_dot_product_attention(self.turn(q, cos, sin), self.turn(k, cos, sin), v, is_causal=True)
            y = linear(y.transpose(1, 2).reshape(b, length, -1), p + "attention.dense")
            z = linear(F.gelu(linear(norm(x, p + "post_attention_layernorm"), p + "mlp.dense_h_to_4h")), p + "mlp.dense_4h_to_h")
            x = x + y + z
        return F.linear(norm(x, "gpt_neox.final_layer_norm"), w["embed_out.weight"])
