"""`knouds batch`: a file of jobs in, a file of results out, at any time resumed by the same command.

Rule of the folder: `command` decides what is done; nothing but `command` and `admin` is imported before it is.
"""
