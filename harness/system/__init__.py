"""Errors, text, the terminal, files that are written safely, YAML, this machine, and the running code."""
