"""Prompts of 640 positions and decoding after them, bf16, greedy. Mamba: the operations of models.py, eagerly and as a CUDA graph,
and transformers; Pythia: transformers with SDPA."""
import time

import torch

import models
from common import Report, arguments, free_memory, wall, wanted

PROMPT, CHUNK = 640, 16
MAMBA = {"mamba-790m": ((1536, 48, 50280), [1, 8], []), "mamba-2.8b": ((2560, 64, 50280), [1, 8], [1, 8])}


def per_token(step, chunks, tokens=CHUNK):
    """Milliseconds a token, of each chunk."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    times = []
    for _ in range(chunks):
        start = time.perf_counter()
        for _ in range(tokens):
            step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1000 / tokens)
    return times


def mamba(report, name, sizes, decode, prefill, repeats):
    model = models.Mamba(models.random_weights(models.mamba_shapes(*sizes), torch.bfloat16)).prepare()
    for rows in prefill:
        ids = torch.randint(0, 50000, (rows, PROMPT), device="cuda")
        if models.selective_scan_cuda is None:
            print(f"{name} prefill needs mamba_ssm's scan", flush=True)
            continue
        report.add(f"{name} prefill, b{rows} of {PROMPT}", "PyTorch with mamba_ssm's scan", wall(repeats, lambda _: model.forward(ids)))
    for rows in decode:
        case = f"{name} decode, b{rows}"
        ids, states = torch.randint(0, 50000, (rows,), device="cuda"), model.states(rows)

        def step():
            ids.copy_(model.step(ids, states).argmax(-1))

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        report.add(case, "PyTorch operations, CUDA graph", per_token(graph.replay, repeats))
        report.add(case, "PyTorch operations, eager", per_token(step, max(3, repeats // 2), tokens=4))


def transformers_decode(report, case, model, rows, prompt, chunks=4):
    """generate() of few and of more tokens: the difference is what a token takes."""
    ids = torch.randint(0, 50000, (rows, prompt), device="cuda")

    def seconds(tokens):
        torch.cuda.synchronize()
        start = time.perf_counter()
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, use_cache=True, pad_token_id=0)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds(4)
    report.add(case, "transformers, eager", [(seconds(12) - seconds(4)) * 1000 / 8 for _ in range(chunks)])


def main():
    options = arguments(repeats=7)
    report = Report(options.json)
    torch.set_grad_enabled(False)
    for name, (sizes, decode, prefill) in MAMBA.items():
        if wanted(name, options.only):
            free_memory()
            mamba(report, name, sizes, decode, prefill, options.repeats)
    try:
        import transformers
    except ImportError as e:
        report.failed("pythia-2.8b", "transformers", e)
        return

    def create(config):
        free_memory()
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa" if config.model_type == "gpt_neox" else None).eval()

    for name, (sizes, decode, _) in MAMBA.items():
        if not wanted(name, options.only):
            continue
        try:
            d, layers, vocabulary = sizes
            model = create(transformers.MambaConfig(hidden_size=d, num_hidden_layers=layers, vocab_size=vocabulary, state_size=16))
            for rows in decode:
                transformers_decode(report, f"{name} decode, b{rows}", model, rows, prompt=8, chunks=3)
            del model
        except Exception as e:  # a baseline that this version of transformers does not give is missing, and no more
            report.failed(f"{name} decode", "transformers, eager", e)
    if wanted("pythia-2.8b", options.only):
        model = create(transformers.GPTNeoXConfig(hidden_size=2560, num_hidden_layers=32, num_attention_heads=32, intermediate_size=10240, vocab_size=50304, rotary_pct=0.25))
        for rows in (1, 8):
            ids = torch.randint(0, 50000, (rows, PROMPT), device="cuda")
            report.add(f"pythia-2.8b prefill, b{rows} of {PROMPT}", "transformers, SDPA", wall(options.repeats, lambda _: model(input_ids=ids, use_cache=True, logits_to_keep=1)))
        for rows in (1, 8):
            transformers_decode(report, f"pythia-2.8b decode, b{rows}", model, rows, prompt=PROMPT)


main()
