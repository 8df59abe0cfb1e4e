"""Lists: a corpus whose items are independent of each other, one name, molecule or log line each.

How items are found in a file, how they are split into parts, and the batches that read them in a new order each epoch.
"""
