"""The stages of a case: `prepare`, `train`, `sample`, `evaluate`, and `diagnose` where a suite asks for it.

Of a whole suite: `profile`. `case` runs those of a case as one process, `worker` is a further process of one.
"""
