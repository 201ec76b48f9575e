"""Training: `config` says how, `batches` what a position holds, `objective` the loss, `loop` the steps, `state` what a checkpoint keeps."""
