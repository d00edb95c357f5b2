"""From the bytes of a frame to RGB pixels. All limits are checked before anything is decoded.

`decoder.decode_picture` decodes a single picture; `decoder.FrameDecoder` decodes the frames
of one stream and keeps the state that h264 and vp8 need. Importing `types` alone costs nothing;
`decoder` imports OpenCV and FFmpeg. Nothing here knows the rest of vision_svc.
"""
