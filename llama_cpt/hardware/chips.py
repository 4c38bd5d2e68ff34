"""Data-sheet figures of each chip, the reference for MFU and plans."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """A device as JAX counts devices: bfloat16 matrix peak without sparsity, memory, links.

    Bandwidths are in bytes per second; 0 if unknown, as for GPUs, because plans are for TPUs.
    """

    name: str
    peak_flops: float
    """Floating-point operations per second of bfloat16 matrix products."""
    memory_bytes: int
    memory_bandwidth: float = 0.0
    ici_bandwidth: float = 0.0
    """All links between chips together, one way: half of the bidirectional figure of the sheet."""
    dcn_bandwidth: float = 0.0
    """This device's share of the host's network."""
    peak_int8_ops: float | None = None
    """Operations per second of int8 products; None if the data sheet of a TPU has no such rate."""
    peak_fp8_flops: float | None = None
    """Operations per second of fp8 products; None if the data sheet of a TPU has no such rate."""

    def peak_of(self, dtype: str) -> float:
        """Return the operations per second of products of ``dtype``: ``s8``, ``f8`` or wider.

        It is the rate of bfloat16 if the chip has no faster one, because the compiler widens the
        operands.
        """
        if dtype == "s8":
            return self.peak_int8_ops or self.peak_flops
        if dtype == "f8":
            return self.peak_fp8_flops or self.peak_flops
        return self.peak_flops


# Sources for TPUs: cloud.google.com/tpu/docs, the page on the architecture of each version. A TPU7x
# chip is two devices; the network of v5e is that of its pod divided by 256, and that of v6e is from
# the table on the TPU7x page. Sources for GPUs: NVIDIA's data sheets.
CHIPS = {
    "TPU v4": Chip("v4", 275e12, 32 << 30, 1200e9),
    "TPU v5 lite": Chip("v5e", 197e12, 16 << 30, 819e9, 200e9, 25e9 / 8, peak_int8_ops=394e12),
    "TPU v5": Chip("v5p", 459e12, 95 << 30, 2765e9, 600e9, 50e9 / 8, peak_int8_ops=918e12),
    "TPU v6 lite": Chip("v6e", 918e12, 32 << 30, 1638e9, 400e9, 100e9 / 8, peak_int8_ops=1836e12),
    "TPU7x": Chip("tpu7x", 1153.5e12, 96 << 30, 3690e9, 300e9, 50e9 / 8, peak_fp8_flops=2307e12),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 80 << 30),
    "NVIDIA H200": Chip("H200", 989e12, 141 << 30),
}
"""Chips by ``jax.Device.device_kind``."""
