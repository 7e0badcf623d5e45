"""Modules of a user's own that misbehave in a child; copied to where a test's child starts."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Layers(nn.Module):
    """Three layers and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.float().mean()


def sample_inputs(batch: int, seq_len: int, device: torch.device) -> dict[str, Any]:
    return {"x": torch.empty(batch, seq_len, 8, device=device)}


def good() -> nn.Module:
    return Layers()


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def mute() -> nn.Module:
    raise MuteError


def stops() -> nn.Module:
    sys.exit("stop")


def talks() -> nn.Module:
    raise ValueError("x" * 10_000)


def endless() -> nn.Module:
    return endless()


def allocates() -> nn.Module:
    torch.empty(50 * 2**30, dtype=torch.uint8, device="cpu")
    return Layers()


def grows() -> nn.Module:
    bytearray(50 * 2**30)
    return Layers()


def prints() -> nn.Module:
    print('{"facts": {}}')
    os.write(1, b'{"facts": {}}\n')
    return Layers()


def floods() -> nn.Module:
    while True:
        os.write(1, b"x" * 2**20)


def copies() -> nn.Module:
    os.fork()
    return Layers()


class Breaks(Layers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("forward is broken")


def breaks() -> nn.Module:
    return Breaks()


def loops() -> nn.Module:
    while True:
        time.sleep(0.01)


def answers() -> nn.Module:
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, b"[1]\n")
        except OSError:
            continue
    return Layers()


def _leave(pid: int) -> None:
    with Path("pids").open("a", encoding="ascii") as noted:
        noted.write(f"{pid}\n")


def leaves() -> nn.Module:
    """Ends, and leaves a process that keeps standard output open and one in a session of its own."""
    for daemon in (False, True):
        pid = os.fork()
        if pid == 0:
            if daemon:
                os.setsid()
            time.sleep(600)
        _leave(pid)
    os._exit(0)
