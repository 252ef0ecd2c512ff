"""The CUDA kernels as implementations of the operators that backends/cpu defines.

Nothing here waits for the device: no value is read, so that every operator can be captured in a
CUDA graph. Labels out of range count as ignored; with CSCL_FAST_CHECK=1 the operators look first.
"""
