"""Makes kernels ready before anything needs them."""
