"""What a model writes, taken apart while it arrives: content, reasoning and calls of tools.

Pure: texts in, pieces out. Whatever a model writes, nothing here raises; text that is not what its
format says is content.
"""
