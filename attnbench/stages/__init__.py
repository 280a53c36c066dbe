"""The stages of a case: `prepare`, `train`, `sample`, `evaluate`; of a whole suite: `profile`.

`case` runs the four as one process, `worker` is a further process of one of them.
"""
