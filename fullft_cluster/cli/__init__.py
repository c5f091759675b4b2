"""The command line: data on stdout, prose on stderr."""
