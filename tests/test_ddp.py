"""DistributedDataParallel over two gloo processes trains as one process with both batches."""

import gc
import os
import socket
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from varemb import VarEmbedding
from varemb.testing import assert_agree, dims_of

SECONDS = 300  # with two cores shared with others; alone it takes about 10
IDS = [torch.tensor([3, 1, 3, 9]), torch.tensor([0, 3, 9, 9])]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    table = VarEmbedding(10, 6, dims=dims_of("uniform", 10, 6))
    return nn.Sequential(table, nn.Linear(6, 1))


def work(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    train(rank, folder)
    # The model must be gone: as the last owner of the group it would end gloo's threads while it
    # holds the interpreter lock that they wait for.
    gc.collect()
    dist.destroy_process_group()


def train(rank: int, folder: str) -> None:
    model = DistributedDataParallel(make_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(IDS[rank]).square().mean().backward()
        optimizer.step()
    torch.save([p.detach() for p in model.parameters()], Path(folder) / f"{rank}.pt")


def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = mp.spawn(work, args=(port, str(tmp_path)), nprocs=2, join=False)
    deadline = time.monotonic() + SECONDS
    while not processes.join(timeout=1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            raise AssertionError(f"the processes did not end within {SECONDS} s")
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.cat([model(ids) for ids in IDS]).square().mean().backward()
        optimizer.step()
    for rank in range(2):
        trained = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for got, expected in zip(trained, model.parameters(), strict=True):
            assert_agree(got, expected)
