"""Pipeline steps: plain functions, Task in, Report out."""
