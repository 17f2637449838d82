"""`knouds batch`: run a file of jobs, write a file of results; the same command resumes it.

Only `command` and `admin` are imported before it is known what to do.
"""
