"""An output folder: shards, records, staging, the commit and its history, and what a later run goes on from."""
