"""The networks: the U-Net of all three stages, its layers, and the denoiser that a stage samples with."""
