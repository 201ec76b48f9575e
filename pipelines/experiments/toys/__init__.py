"""The toy models of the paper's Figure 2: a DDPM, a GAN and a classifier of handwritten digits."""
