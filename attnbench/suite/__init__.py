"""From a YAML suite to its cases.

`loading` does all of it, with `files` (where suites lie), `matrix`, `exceptions`, `checks` (what the schema
cannot say) and `distinct` (no case twice). The schema is `SuiteSpec` in `loading`; its sections are in
`attnbench.specs`.
"""
