"""The command line: `whatfits plan | estimate | models | gpus | optimizers | serve`.

Modules here import only typer when they are loaded, so that `whatfits --help` answers at once; what a command needs is
imported inside it.
"""

from whatfits.service.cli.app import main

__all__ = ["main"]
