"""A stand-in for CuPy, for tests on machines without a GPU."""
