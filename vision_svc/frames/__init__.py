"""From the bytes of a frame to RGB pixels. All limits are checked before anything is decoded.

`decoder.decode_picture` decodes a single picture; `decoder.FrameDecoder` decodes the frames
of one stream and keeps the state that video needs. Importing `types` alone costs nothing;
`decoder` imports OpenCV and FFmpeg. Nothing here knows the rest of vision_svc.
"""
