"""What computes: rates and memory of the devices that a config may be meant for (its key `device`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

from d2llm.config.schema import DeviceName
from d2llm.run.errors import ConfigError

GIGA = 1e9


@dataclass(frozen=True)
class Device:
    """Dense matrix products a second in half precision, of float32 by TF32 and of float32 itself, memory in bytes, and
    the share of the rate that is reached.
    """

    title: str
    half: float
    single: float
    plain: float
    memory: float
    reached: float = 0.35
    gpu: bool = True

    def exact(self) -> Device:
        """Without TF32."""
        return replace(self, single=self.plain)

    def hours(self, flops: float, half: bool) -> float:
        """Hours of so many FLOPs."""
        return flops / ((self.half if half else self.single) * self.reached) / 3600


# Of the makers' data sheets, without sparsity; the CPU's as measured on the machine of docs/performance.md.
DEVICES: dict[DeviceName, Device] = {
    "h100": Device("NVIDIA H100 SXM", 989e12, 495e12, 67e12, 80e9),
    "a100": Device("NVIDIA A100 SXM", 312e12, 156e12, 19.5e12, 80e9),
    "l40s": Device("NVIDIA L40S", 362e12, 183e12, 91.6e12, 48e9),
    "rtx4090": Device("NVIDIA RTX 4090", 165e12, 83e12, 82.6e12, 24e9),
    "cpu": Device("one core of a server's CPU", 1.2e11, 1.2e11, 1.2e11, 4e9, reached=0.6, gpu=False),
}


def device_of(name: str) -> Device:
    """A device by name. Raises ConfigError for an unknown one."""
    for known in get_args(DeviceName):
        if known == name:
            return DEVICES[known]
    raise ConfigError(f"--device: expected one of {', '.join(DEVICES)}; found {name!r}")
