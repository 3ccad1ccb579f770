"""The gRPC service: it knows the wire contract on one side and the models on the other.

Nothing is imported here, so that `treadle-server --check-health` starts without NumPy and Numba.
"""
