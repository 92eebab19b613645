"""A laboratory in network namespaces: an agent host, an internet with origins and a name server, and the demo."""
