"""A mock for CuPy, for tests on machines without a GPU."""
