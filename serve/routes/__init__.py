"""The HTTP routes: thin, each calls the part that does the work."""
