"""Only tests are collected here: importing a command replaces parts of a library."""

collect_ignore_glob = ["[!t]*.py", "tables.py"]
