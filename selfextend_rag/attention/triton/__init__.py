"""SelfExtend attention in Triton kernels: for CUDA devices, or anywhere under its interpreter.

Importing its `dispatch` imports no triton; the first call does.
"""
