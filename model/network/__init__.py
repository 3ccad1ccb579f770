"""The network: its parameters, its memory, and the engine that runs the kernels over it."""
