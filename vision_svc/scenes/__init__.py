"""What whole streams are about: templates in frames, a moving crop, shots and what they show."""

# The tasks by their names, in metrics and logs.
TEMPLATE_MATCHING = "template-matching"
AUTO_FLIP = "auto-flip"
MEDIA_SEQUENCE = "media-sequence"

# What detected faces are called among the labels of objects.
FACE_LABEL = "face"
