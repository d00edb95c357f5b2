"""Reading and writing protobuf's wire format by hand, for the four messages where that pays.

Protobuf makes a Python object of every item and copies every bytes field, which costs more than
the work around it and holds the interpreter's lock, so other calls wait:

- 512 vectors of 384 numbers take 31 ms as objects and 0.15 ms as rows of an array (`rows`).
- The 478 landmarks of a face take 0.4 ms as objects and 0.02 ms as rows (`rows`).
- A raw video frame of 640 x 480 pixels is 0.9 MB, which protobuf copies twice in 0.7 ms; a view
  of its bytes takes no time (`leading`).
- A chunk of a file is copied twice on its way out; by hand it is once (`chunks`).

The messages are those of `protos/ml` all the same: any protobuf library can be at the other end.
"""
