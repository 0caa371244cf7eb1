"""All ports in the memory of one process: for the library, for tests, for a laptop."""
