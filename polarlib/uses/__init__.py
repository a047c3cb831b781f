"""What the polar factor is used for: nearest matrices, roots, matrices larger than memory."""
