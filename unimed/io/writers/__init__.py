"""Formats of results, one function each: found by `Prediction.save` under the name it registers.

A writer takes a prediction (and `image`, what an overlay is drawn on, and the names of all `formats` that are written
together), checks that it can be written, and returns {suffix: function that writes the file at a path and returns the
path written}. To add a format, put a file with such a function here:

    @WRITERS.register_module("csv")
    def boxes_as_csv(prediction, image=None, formats=()): ...
"""
