"""What needs a GPU: one script, run by hand."""
