"""`unimed convert` called in process."""

from unimed.commands.convert import convert


def convert_tool(*arguments):
    return convert([str(argument) for argument in arguments])
