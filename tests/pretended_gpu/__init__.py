"""A GPU that is not there: torch's CUDA device on the CPU's memory, for the code around the kernels.

    python -m tests.pretended_gpu                       # the tests of tests/kernels and tests/align, as on a GPU
    python -m tests.pretended_gpu tests/align -k sft    # any arguments of pytest

Tensors are on cuda:0 and cannot be mixed with the CPU's, every operation of torch has the CPU's values, and whatever a
host would wait for is counted. The Triton kernels do not run here (tests/triton and tests/ttir run them): the GPU says
that it is too old for them, so the ops run on torch's operations.
"""
