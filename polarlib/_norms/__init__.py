"""Behind :mod:`polarlib.norms`: one file a family of norms."""
