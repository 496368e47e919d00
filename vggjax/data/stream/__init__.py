"""Images without labels, one after the other: from files, lists, tar shards and Parquet."""
