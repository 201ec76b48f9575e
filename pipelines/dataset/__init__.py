"""Datasets on disk or S3: samples, shards, commits, tables, columns, checks (see `manifest.open_dataset`)."""
