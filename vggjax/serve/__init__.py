"""A finished run over HTTP: the service, and the demo in a browser."""
