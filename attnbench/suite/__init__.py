"""From a YAML suite to its cases.

`files` (where suites lie), `matrix`, `exceptions`, `checks` (what goes together), `loading` (all of it).
"""
