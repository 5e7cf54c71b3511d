"""Words on the command line become one call of the API."""
