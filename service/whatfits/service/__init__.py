"""The service: the REST API, its settings, the composition root and the command line."""
