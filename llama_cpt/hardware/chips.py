"""Data-sheet figures of chips, for MFU and for the estimates of the command ``plan``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Data-sheet figures of one JAX device.

    Peak rates do not assume sparsity. Bandwidths are in bytes per second. The bandwidths of GPUs
    are 0, because only the command ``plan`` uses bandwidths, and ``plan`` does not support GPUs.
    """

    name: str
    peak_flops: float
    """Peak rate of bfloat16 matrix products, in floating-point operations per second."""
    memory_bytes: int
    memory_bandwidth: float = 0.0
    ici_bandwidth: float = 0.0
    """Total bandwidth of all links to neighboring chips, in one direction. The value is half of the
    figure in the data sheet, which counts both directions."""
    dcn_bandwidth: float = 0.0
    """This device's share of the bandwidth of the data-center network."""
    peak_int8_ops: float | None = None
    """Peak rate of int8 matrix products, in operations per second.

    If the value is None, ``peak_of`` returns ``peak_flops`` instead.
    """
    peak_fp8_flops: float | None = None
    """Peak rate of fp8 matrix products, in operations per second.

    If the value is None, ``peak_of`` returns ``peak_flops`` instead.
    """

    def peak_of(self, dtype: str) -> float:
        """Return the peak rate of matrix products of ``dtype``, in operations per second.

        ``dtype`` is ``s8``, ``f8`` or a wider type. If the chip has no peak rate for the type, the
        result is the bfloat16 rate, because the compiler converts the operands to bfloat16.
        """
        if dtype == "s8":
            return self.peak_int8_ops or self.peak_flops
        if dtype == "f8":
            return self.peak_fp8_flops or self.peak_flops
        return self.peak_flops


# Sources for TPUs: cloud.google.com/tpu/docs, the page on the architecture of each version. A TPU7x
# chip is two devices. The network bandwidth of v5e is that of a pod divided by 256; that of v6e is
# from the table on the TPU7x page. Sources for GPUs: NVIDIA's data sheets.
CHIPS = {
    "TPU v4": Chip("v4", 275e12, 32 << 30, 1200e9),
    "TPU v5 lite": Chip("v5e", 197e12, 16 << 30, 819e9, 200e9, 25e9 / 8, peak_int8_ops=394e12),
    "TPU v5": Chip("v5p", 459e12, 95 << 30, 2765e9, 600e9, 50e9 / 8, peak_int8_ops=918e12),
    "TPU v6 lite": Chip("v6e", 918e12, 32 << 30, 1638e9, 400e9, 100e9 / 8, peak_int8_ops=1836e12),
    "TPU7x": Chip("tpu7x", 1153.5e12, 96 << 30, 3690e9, 300e9, 50e9 / 8, peak_fp8_flops=2307e12),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 80 << 30),
    "NVIDIA H200": Chip("H200", 989e12, 141 << 30),
}
"""Chips by ``jax.Device.device_kind``, the name of the device in JAX."""
