"""GPU kernels, one Triton kernel a file with its plain-torch twin. This file imports nothing."""
