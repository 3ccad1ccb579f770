"""What the kernels are worth on this machine: checks first, then figures beside the peers'."""
