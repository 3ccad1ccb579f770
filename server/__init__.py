"""The gRPC server: it implements the contract with the models of `treadle.model`.

It imports nothing, so that `treadle-server --check-health` starts without NumPy and Numba.
"""
