"""`unimed benchmark`: a contestant over the cases of a declared benchmark, frozen, scored, checked and repeatable.

frozen: predictions in a file. leaks: what test and training data share. frame: whether boxes are read in the frame they
are written in. running: asking and scoring. manifest: what a run was made of, and whether another one is the same.
"""
