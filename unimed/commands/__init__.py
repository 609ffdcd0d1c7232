"""Every verb of the command line; `demo/` and `tools/` call these functions."""
