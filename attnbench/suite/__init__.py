"""From a YAML suite to its cases.

`loading` does all of it, with `schema` (`SuiteSpec`; its sections are in `attnbench.specs`), `files` (where
suites lie), `extending` (files over files), `overrides`, `matrix`, `exceptions`, `resolving` (each section
read once), `checks` (what the schema cannot say) and `distinct` (no case twice); `choosing` takes some cases.
"""
