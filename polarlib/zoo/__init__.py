"""Matrices that break things, and matrices with given singular values."""
