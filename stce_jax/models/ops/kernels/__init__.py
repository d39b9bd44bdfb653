"""Kernels for CUDA devices, in Pallas by way of Triton, each with its plain form beside the operation that it serves.

XLA computes a sum along rows, what follows from it, and sums along columns in kernels of their own, each of which reads
the arrays again. These read each array once. With `interpret` a CPU runs them, slowly, for tests.
"""
