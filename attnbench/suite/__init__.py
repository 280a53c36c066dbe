"""From a YAML suite to its cases.

`loading` does all of it, with `files` (where suites lie), `extending` (files over files), `overrides`,
`matrix`, `exceptions`, `checks` (what the schema cannot say) and `distinct` (no case twice); `choosing` takes
some of its cases. The schema is `SuiteSpec` in `loading`; its sections are in `attnbench.specs`.
"""
