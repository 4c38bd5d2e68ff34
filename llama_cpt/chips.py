"""What each chip can do, from its maker's data sheet: the yardstick of MFU and of plans."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Dense bfloat16 matrix peak and memory of one device as JAX counts devices."""

    name: str
    peak_flops: float
    """Floating-point operations a second."""
    memory_bytes: int


# Keys: ``jax.Device.device_kind``. TPU: cloud.google.com/tpu/docs, system architecture pages of
# each version; GPU: NVIDIA data sheets, without sparsity.
CHIPS = {
    "TPU v4": Chip("v4", 275e12, 32 << 30),
    "TPU v5 lite": Chip("v5e", 197e12, 16 << 30),
    "TPU v5": Chip("v5p", 459e12, 95 << 30),
    "TPU v6 lite": Chip("v6e", 918e12, 32 << 30),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 80 << 30),
    "NVIDIA H200": Chip("H200", 989e12, 141 << 30),
}
