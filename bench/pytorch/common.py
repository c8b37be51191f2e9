"""What the scripts share: times as the C# side takes them, and results as JSON."""
import argparse
import json
import os
import sys
import time

import torch


def arguments(**more):
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", help="where the results go; they are printed in any case")
    parser.add_argument("--only", help="only the cases whose name holds this")
    for name, default in more.items():
        parser.add_argument("--" + name.replace("_", "-"), default=default, type=type(default))
    return parser.parse_args()


def wanted(name, only):
    return only is None or only.lower() in name.lower()


class Report:
    def __init__(self, path):
        self.path, self.results = path, []

    def add(self, case, how, milliseconds, gigabytes=None):
        t = sorted(milliseconds)

        def at(q):
            place = q * (len(t) - 1)
            low, high = t[int(place)], t[min(int(place) + 1, len(t) - 1)]
            return low + (high - low) * (place - int(place))

        self.results.append({"case": case, "how": how, "gigabytes": gigabytes,
                             "time": {"median": at(0.5), "lowerQuartile": at(0.25), "upperQuartile": at(0.75), "repeats": len(t)}})
        print(f"{case:42} {how:34} {at(0.5):9.3f} ms ({at(0.25):.3f} to {at(0.75):.3f})", file=sys.stderr, flush=True)
        if self.path:  # whole or not at all: what is there when a later case fails is what was measured
            with open(self.path + ".part", "w") as f:
                json.dump(self.results, f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(self.path + ".part", self.path)

    def failed(self, case, how, error):
        print(f"{case:42} {how:34} {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", file=sys.stderr, flush=True)


def kernels(repeats, run, batch=8, warm_ups=3):
    """GPU time alone: events that wait behind other work, so that the host is ahead of them."""
    for i in range(warm_ups):
        run(i)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for i in range(batch):
        run(i)
    host = time.perf_counter() - start
    torch.cuda.synchronize()
    times = []
    for done in range(0, repeats, batch):
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(batch)]
        torch.cuda._sleep(int((2 * host + 1e-3) * 1.98e9))  # clock ticks
        for i, (begin, end) in enumerate(events):
            begin.record()
            run(done + i)
            end.record()
        torch.cuda.synchronize()
        times += [begin.elapsed_time(end) for begin, end in events]
    return times[:repeats]


def wall(repeats, run, warm_ups=2):
    """Host and GPU, from the call to the result."""
    for i in range(warm_ups):
        run(i)
    torch.cuda.synchronize()
    times = []
    for i in range(repeats):
        start = time.perf_counter()
        run(i)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1000)
    return times


def used_gigabytes():
    """What the device has in use, of this process and of every other."""
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e9


def free_memory():
    import gc
    gc.collect()
    torch.cuda.empty_cache()
