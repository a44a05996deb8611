"""Files: written whole or not at all, read without running what they ask for, downloaded with their hashes compared."""
