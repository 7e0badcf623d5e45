"""Optimizers of other libraries behind our registry, one file per library; a library is loaded when one is built."""
