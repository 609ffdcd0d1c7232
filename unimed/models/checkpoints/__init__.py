"""Published checkpoints, read without unpickling and written as a folder that `unimed.load` opens.

Every layout (`unimed.layouts`) is a module with

- `recognises(path) -> bool`: whether a file or folder is of this layout, judged by names and keys alone;
- `convert(source, destination, **options) -> ConversionReport`: whole or not at all;
- `add_arguments(parser)`, where `convert` has options: their flags, named as in `convert`;
- `beside(source) -> list[Path]`, where `convert` reads files that lie beside the source.
"""

from unimed.layouts import CONVERTERS, LAYOUTS

__all__ = ["CONVERTERS", "LAYOUTS"]
