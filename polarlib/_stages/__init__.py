"""The stages that :func:`polarlib.polar` and the functions of the unitary factor go through."""
