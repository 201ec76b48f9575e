"""Experiment tracking in MLflow: what a pipeline run did, sent in the background.

`connection` opens a tracking server or database, `runs` are MLflow runs found again by their identity.
`mirror` sends steps, metrics and images through an `outbox` that retries; `metrics_log` keeps metrics on disk
until they are sent; `heartbeat` shows the next run which drivers died with something unsent.
"""
