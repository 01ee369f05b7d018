"""The engine's arithmetic in one thread: the same sums whatever the machine. GPUs where there are none."""

import pytest
import torch
from simulated import devices


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def simulated(monkeypatch):
    """Two devices that compute on the CPU, and are as strict as GPUs about what lies where."""
    return devices(monkeypatch)
