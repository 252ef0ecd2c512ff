"""The reference backend: plain PyTorch, any device, any float dtype.

It is the oracle that the compiled backends are tested against and the baseline they are timed
against. Half types are computed in float32, float64 stays float64, autocast is off inside, and
sums over pixels are carried in float64.
"""
