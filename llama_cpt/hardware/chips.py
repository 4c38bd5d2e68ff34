"""What each chip can do, from its maker's data sheet: the yardstick of MFU and of plans."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One device as JAX counts devices: bfloat16 matrix peak without sparsity, memory, links.

    Bandwidths are bytes a second; 0 where no data sheet was at hand: plans are for TPUs.
    """

    name: str
    peak_flops: float
    """Floating-point operations a second."""
    memory_bytes: int
    memory_bandwidth: float = 0.0
    ici_bandwidth: float = 0.0
    """All links between chips together, one way: half of the sheet's bidirectional figure."""
    dcn_bandwidth: float = 0.0
    """Share of the host's network."""
    peak_int8_ops: float | None = None
    """Operations a second of products of int8; None where a TPU's sheet has no such rate."""
    peak_fp8_flops: float | None = None
    """Of products of fp8; None where a TPU's sheet has no such rate."""

    def peak_of(self, dtype: str) -> float:
        """Of products whose operands are of ``dtype``: ``s8``, ``f8`` or a wider one.

        bfloat16's rate where the chip has none for it: the compiler widens them.
        """
        if dtype == "s8":
            return self.peak_int8_ops or self.peak_flops
        if dtype == "f8":
            return self.peak_fp8_flops or self.peak_flops
        return self.peak_flops


# Keys: ``jax.Device.device_kind``. TPU: cloud.google.com/tpu/docs, system architecture pages of
# each version (a TPU7x chip is two devices; v5e's network is its pod's, divided by 256, and v6e's
# that of the TPU7x page's table); GPU: NVIDIA data sheets.
CHIPS = {
    "TPU v4": Chip("v4", 275e12, 32 << 30, 1200e9),
    "TPU v5 lite": Chip("v5e", 197e12, 16 << 30, 819e9, 200e9, 25e9 / 8, peak_int8_ops=394e12),
    "TPU v5": Chip("v5p", 459e12, 95 << 30, 2765e9, 600e9, 50e9 / 8, peak_int8_ops=918e12),
    "TPU v6 lite": Chip("v6e", 918e12, 32 << 30, 1638e9, 400e9, 100e9 / 8, peak_int8_ops=1836e12),
    "TPU7x": Chip("tpu7x", 1153.5e12, 96 << 30, 3690e9, 300e9, 50e9 / 8, peak_fp8_flops=2307e12),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 80 << 30),
    "NVIDIA H200": Chip("H200", 989e12, 141 << 30),
}
