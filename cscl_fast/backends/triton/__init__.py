"""The Triton kernels as `torch.library` operators, one file for each operator."""
