"""Tools around the services: the native stack, model fetching, the demonstration."""
