"""Device code checked without a device: what each array library would do on a GPU, as numbers.

Each module with a command runs in an interpreter of its own, since a fake device stays in its
process. docs/gpu.md says what each proves, and what it does not.
"""
