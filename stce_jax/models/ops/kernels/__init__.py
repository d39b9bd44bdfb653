"""Kernels for CUDA devices, in Pallas by way of Triton, each with its plain form beside the operation that it serves.

They are written for passes over memory, which XLA splits: a kernel reads each array once. Every function takes
`interpret`, by which a CPU runs it, slowly, for tests.
"""
