"""Memory of a training step beyond the module's own forward and backward."""
