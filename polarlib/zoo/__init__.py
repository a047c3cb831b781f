"""Test matrices: difficult ones by name, and matrices with given singular values."""
