"""Commands and what they import are no tests: they need a library, or replace a part of one."""

collect_ignore_glob = ["[!t]*.py", "tables.py"]
