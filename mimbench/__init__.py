"""mimbench: compares masked-image-modelling pre-training methods under identical settings."""

__version__ = "0.1.0"
