"""Frames from the wire to RGB pixels, every limit checked before a byte is decoded.

`decoder.decode_picture` takes one picture that stands alone; `decoder.FrameDecoder` takes the
frames of one stream and keeps the decoder that h264 and vp8 need. Importing `types` alone costs
nothing; `decoder` brings OpenCV and FFmpeg.
"""
