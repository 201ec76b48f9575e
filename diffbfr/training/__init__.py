"""Training of a stage.

`config` holds the settings, `batches` the samples of a position, `objective` the loss, `train_step` one
optimiser step, `loop` the whole run and `checkpoint_writer` the thread that writes.
"""
