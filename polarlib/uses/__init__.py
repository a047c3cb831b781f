"""Uses of the polar factor: nearest matrices, alignment, roots, matrices larger than memory."""
