"""Weights in from public checkpoints: read as tensors alone, renamed by rules, never as code.

`checkpoints` is the table of what can be imported, `sr3` and `guided_diffusion` are the names that the two
families of networks give their tensors, `layout` compares and converts, `pth` reads a file of torch. It is a
room of its own beside `models/`, because nothing that trains or restores needs it.
"""
