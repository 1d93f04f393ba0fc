"""Pages from templates that lie beside the code: every value is escaped, and an unknown one is an error."""

from __future__ import annotations

from collections.abc import Callable

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

__all__ = ["page_template"]


def page_template(package: str, name: str, **filters: Callable[..., str]) -> Template:
    """Return a template of a package's folder.

    Args:
        package: its dotted name.
        name: the file, ``*.html.jinja``.
        filters: what the template may call, by name.
    """
    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(name)
