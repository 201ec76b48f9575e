"""Training: `config` says how, `batches` what a position holds, `objective` its loss, `engine` a step,
`loop` all, `writer` the files.
"""
