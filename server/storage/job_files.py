"""The files in a job's directory. Each is replaced as a whole or not at all."""

STATE_FILE = "state.safetensors"
"""The whole state of the run, to go on from."""

LAST_FILE = "last.safetensors"
"""The model as it was at the last checkpoint; anybody may use it while the job runs."""

BEST_FILE = "best.safetensors"
"""The model that validated best so far."""

FINAL_FILE = "final.safetensors"
"""The model to store as a version: the run is over."""

INIT_FILE = "init.safetensors"
"""The model to go on from, where the job fine-tunes one."""
