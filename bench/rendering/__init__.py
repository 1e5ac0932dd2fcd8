"""docs/results.md from the records of ``bench/results/``: one module for each kind of record.

A module of this package that renders records has two functions, and a line in
``document.CHAPTERS``:

- ``owns(name, record) -> bool``: whether a record (its file's stem and content) is of its kind;
- ``chapter(records) -> str``: Markdown of all its records, ``{stem: content}``, in the order of the
  file names. It is called only where there is at least one.

A record must carry ``hardware``, ``versions``, ``started`` and ``command`` (``markdown.provenance``
refuses it otherwise): no figure stands without the machine and the command that it came from.
"""
