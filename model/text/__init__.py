"""Training texts: decoding bytes, characters <-> ids, the split into parts, and the batches that read them.

Not here: the folder of uploaded corpora (service/store), and anything that knows a network.
"""
