"""The formats in which public models write calls of tools, a file for each family."""
