"""How lm-eval learns of `--model lkv`: two entry points in pyproject.toml.

`lm_eval.models` is lm-eval's own, read by the releases after 0.4.13. 0.4.13 knows only the models inside its
package, so until then `register` hangs on the entry point that torch calls at the end of its own import
(`torch.backends`): lm-eval imports torch, to seed it, before it looks the model up. It runs wherever torch is
imported, so it does nothing unless lm-eval is already there, and loads nothing heavy.
"""

from __future__ import annotations

import sys
from contextlib import suppress

NAME, TARGET = "lkv", "lkv.integrations.lm_eval:LKV"


def register() -> None:
    """Adds the name to lm-eval's registry of models; the class itself is imported when it is asked for."""
    if "lm_eval" not in sys.modules:
        return
    with suppress(ImportError, AttributeError):  # another lm-eval must not make `import torch` fail
        # Fills the registry with lm-eval's own, which it does by itself only while the registry is empty.
        import lm_eval.models  # noqa: F401
        from lm_eval.api.registry import model_registry

        if NAME not in model_registry:
            model_registry.register(NAME, target=TARGET)


def main() -> None:
    """lm-eval's command line without installed entry points: run this module with lm-eval's flags."""
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()


if __name__ == "__main__":
    main()
