"""What every room stands on: errors, text, the terminal, files that are written safely, YAML, this machine, this code."""
