"""Gloo's all-reduce between processes over TCP, timed as `lockstep bench allreduce` times Lockstep's.

Needs PyTorch (pip install torch; the build for CPUs is enough):
    python3 launcher/bench/gloo_all_reduce.py --workers 2 --max-mib 256 --rounds 9
With --rank it is one process of a job over several machines, whose first one has --address:
    python3 launcher/bench/gloo_all_reduce.py --workers 2 --rank 1 --address node01 --interface eth0
Prints one JSON object: for each size the median over the rounds, in the conventions of nccl-tests.
"""

import argparse
import json
import os
import statistics
import time

import torch
import torch.distributed
import torch.multiprocessing

BYTES_A_ROUND = 128 << 20


def time_sum(data: torch.Tensor, repeats: int) -> float:
    """Seconds that one sum takes, on the slowest rank."""
    torch.distributed.barrier()
    begin = time.perf_counter()
    for _ in range(repeats):
        torch.distributed.all_reduce(data)
    took = torch.tensor([(time.perf_counter() - begin) / repeats], dtype=torch.float64)
    torch.distributed.all_reduce(took, op=torch.distributed.ReduceOp.MAX)
    return took.item()


def run_worker(rank: int, options: argparse.Namespace) -> None:
    os.environ.update(MASTER_ADDR=options.address, MASTER_PORT=str(options.port), GLOO_SOCKET_IFNAME=options.interface)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=options.workers)
    largest = options.max_mib << 20
    data = torch.zeros(largest // 4, dtype=torch.float32)
    rows = []
    size = options.min_kib << 10
    while size < 4 * largest:
        part = data[: min(size, largest) // 4]
        repeats = max(1, min(500, BYTES_A_ROUND // (part.numel() * 4)))
        time_sum(part, min(repeats, 10))
        seconds = statistics.median(time_sum(part, repeats) for _ in range(options.rounds))
        rows.append({"bytes": part.numel() * 4, "us": seconds * 1e6, "algbw_gb_per_s": part.numel() * 4 / seconds / 1e9})
        size *= 4
    if rank == 0:
        print(json.dumps({"bench": "gloo", "torch": torch.__version__, "world": options.workers, "sizes": rows}))
    torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--min-kib", type=int, default=4)
    parser.add_argument("--max-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--port", type=int, default=29511)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--interface", default="lo")
    options = parser.parse_args()
    if options.rank is not None:
        run_worker(options.rank, options)
        return
    torch.multiprocessing.spawn(run_worker, (options,), options.workers)


if __name__ == "__main__":
    main()
