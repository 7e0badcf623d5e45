"""The service's own rules: what may be asked over the network, and who answers it."""
