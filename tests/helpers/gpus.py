"""GPUs that this machine does not have."""

import torch


def with_gpus(monkeypatch, capabilities, architectures=("sm_75", "sm_80", "sm_90a")) -> None:
    """As if there were GPUs called Card 0, Card 1 ..., and a torch built for some architectures."""
    for name, value in {
        "is_available": lambda: bool(capabilities),
        "device_count": lambda: len(capabilities),
        "get_device_name": lambda device: f"Card {device.index}",
        "get_device_capability": lambda device: capabilities[device.index],
        "get_arch_list": lambda: list(architectures),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
