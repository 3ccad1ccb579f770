"""The commands of the `treadle` program, a module each.

Each has `add_parsers(commands)`; the parser that it adds names the function to run. gRPC is
loaded by that function, not by the module, so that help and usage errors come at once.
"""
