"""The console: one page for people, served on loopback by the proxy."""
