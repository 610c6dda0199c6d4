"""Every Triton kernel, executed on the CPU from the TTIR that Triton's frontend makes of its launch: `make ttir`."""
