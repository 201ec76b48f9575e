"""Training: `config` says how, `batches` what a position holds, `objective` its loss, `train_step` a step,
`loop` all, `writer` the files.
"""
