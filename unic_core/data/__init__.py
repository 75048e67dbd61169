"""Images: from any source into deterministic shards, and from shards into the same global batches everywhere.

sources -> prepare -> shards (a data set) -> dataset -> order, geometry -> loader -> augment (on the device).
"""
