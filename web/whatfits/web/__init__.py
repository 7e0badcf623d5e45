"""The pages: server-rendered, a client of the REST API like any other."""
