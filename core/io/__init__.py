"""Files: atomic writes, reading that never executes code, and downloads that are compared with their hashes."""
