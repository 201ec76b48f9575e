"""The cluster: steps, flows and doors to ray, mlflow, storage and parquet. No mathematics."""
