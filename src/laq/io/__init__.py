"""Containers on disk: one format a module, read and write.

A reader checks every number of a file before it uses it, and refuses with FormatError. A
writer leaves a whole file or none. To add a container, add a module with those two promises
and a test in `tests/hostile/`.
"""
