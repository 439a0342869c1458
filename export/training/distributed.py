"""One training on several devices: `torchrun` starts N processes, and each takes its share of every batch."""

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def join() -> tuple[int, int]:
    """Join the processes that torchrun has started; return this one's number, and how many there are (else 0, 1)."""
    if "RANK" not in os.environ:
        return 0, 1
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), dist.get_world_size()


def share(batch: int) -> int:
    """Return this process's part of a number of pictures."""
    return batch // join()[1]


def agree(net: nn.Module) -> None:
    """Give all processes the weights of the first one: what was drawn by chance differs between them."""
    if dist.is_initialized():
        for value in net.state_dict().values():
            dist.broadcast(value, 0)


def mine(parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return this process's share of parts that the processes work through together."""
    rank, count = join()
    return parts[rank::count]


def total(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, in all of them."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def average_gradients(net: nn.Module) -> None:
    """Replace each gradient by its mean over all processes: one batch, spread over them."""
    for p in net.parameters():
        if dist.is_initialized() and p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()


def broadcast(value: bool, device: torch.device) -> bool:
    """Return the value of the first process, in all of them."""
    if join()[1] == 1:
        return value
    sent = torch.tensor(float(value), device=device)
    dist.broadcast(sent, 0)
    return bool(sent)


def wait() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Close the connections to the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()
