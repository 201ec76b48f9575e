"""Training: `config` says how, `batches` what a position of a run holds, `loop` is the one loop of all three stages."""
